"""What editing and forgetting share: a change is proposed, examined, judged, committed or refused, recorded, undone."""
