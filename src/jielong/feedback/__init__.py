"""What people think of answers: thumbs, comparisons, demonstrations."""
