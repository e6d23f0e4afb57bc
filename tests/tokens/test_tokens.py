from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jielong.errors import UserError
from jielong.model.gpt import document_mask
from jielong.tokens import chat
from jielong.tokens.chat import JINJA, chat_ids, encode_chat, fit
from jielong.tokens.shards import make_batch, make_index, read_shard, write_shard
from jielong.tokens.tokenizer import SPECIAL, cut_words, train

ALPHABET = st.characters(exclude_categories=["Cs"])


@settings(max_examples=200, deadline=None)
@given(st.text(ALPHABET))
def test_every_string_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\x00", "\x00")


def test_special_tokens_in_text_stay_text(tokenizer):
    for name in SPECIAL:
        ids = tokenizer.encode(name)
        assert tokenizer.decode(ids) == name or len(ids) == 1


def test_words_are_cut_at_the_dictionary():
    assert list(cut_words("法國的首都 is 巴黎", {"法國", "首都", "巴黎"})) == ["法國", "的", "首都", " is ", "巴黎"]


def test_small_corpus_says_what_to_do():
    with pytest.raises(UserError, match="--vocab-size"):
        train(["too small"], 4096)
    with pytest.raises(UserError, match="vocab-size"):
        train(["x"], 100)


def test_only_the_assistant_is_learnt(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 你好"}]
    ids, learn = encode_chat(tokenizer, messages)
    learnt = [i for i, flag in zip(ids, learn, strict=True) if flag]
    assert tokenizer.decode(learnt) == "Hello 你好" and learnt[-1] == tokenizer.im_end
    with pytest.raises(UserError):
        encode_chat(tokenizer, [{"role": "robot", "content": "x"}])


def test_oldest_turns_are_dropped_first(tokenizer):
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"word {n}"} for n in range(9)]
    kept = fit(tokenizer, [{"role": "system", "content": "S"}, *turns], 120)
    assert kept[0]["role"] == "system" and kept[-1] == turns[-1] and 2 < len(kept) < 10


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=12), st.integers(1, 80))
def test_what_is_kept_is_found_one_by_one(tokenizer, roles, longest):
    messages = [{"role": role, "content": "w" * (n % 4)} for n, role in enumerate(roles)]
    system = messages[: roles[0] == "system"]
    turns = messages[len(system) :]
    while len(turns) > 1 and len(encode_chat(tokenizer, system + turns, True)[0]) > longest:
        turns = turns[1:]
        while len(turns) > 1 and turns[0]["role"] != "user":
            turns = turns[1:]
    assert fit(tokenizer, messages, longest) == system + turns


@pytest.mark.parametrize("template", [None, JINJA])
def test_ten_thousand_turns_are_no_more_work_than_what_is_kept(tokenizer, monkeypatch, template):
    if template:
        tokenizer = copy.copy(tokenizer)
        monkeypatch.setattr(tokenizer, "imported", True)
        monkeypatch.setattr(tokenizer, "template", template)
    read: list[int] = []
    whole = chat.check_messages
    monkeypatch.setattr(chat, "check_messages", lambda messages: (read.append(len(messages)), whole(messages)))
    turns = [{"role": ("user", "assistant")[n % 2], "content": ""} for n in range(10_000)]
    kept = fit(tokenizer, turns, 200)
    assert len(chat_ids(tokenizer, kept, True)) <= 200 < len(chat_ids(tokenizer, turns[-len(kept) - 2 :], True))
    assert sum(read) < 20 * len(kept)


@pytest.fixture
def shard(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(4, 300, rng.integers(3, 50)).tolist() for _ in range(60)]
    write_shard(tmp_path, [f"id{n}" for n in range(60)], documents, 320)
    return read_shard(tmp_path)


ROWS, LENGTH, STEPS = 4, 24, 10


def test_every_token_of_an_epoch_is_a_target_once(shard):
    index = make_index(shard.lengths, shard.ids, LENGTH, 10_000, seed=1)
    seen = np.zeros(len(shard.tokens), dtype=int)
    for i in np.flatnonzero(index.epoch == 0):
        start = shard.starts[index.record[i]] + index.begin[i]
        seen[start + 1 : start + index.size[i] + 1] += 1
        assert index.column[i] + index.size[i] <= LENGTH
    expected = np.ones(len(shard.tokens), dtype=int)
    expected[shard.starts[:-1]] = 0
    assert (seen == expected).all()


def test_order_depends_on_seed_and_ids_only(shard):
    a = make_index(shard.lengths, shard.ids, LENGTH, STEPS * ROWS, seed=1)
    b = make_index(shard.lengths, shard.ids, LENGTH, STEPS * ROWS, seed=1)
    c = make_index(shard.lengths, shard.ids, LENGTH, STEPS * ROWS, seed=2)
    assert (a.record == b.record).all() and not (len(a.record) == len(c.record) and (a.record == c.record).all())


def test_deleting_a_record_changes_no_other_row(shard, model):
    """Not its tokens, and not one bit of what the model computes for the other rows."""
    index = make_index(shard.lengths, shard.ids, LENGTH, STEPS * ROWS, seed=1)
    record = int(index.record[5])
    places = index.where(record, ROWS)
    assert places
    for step in range(STEPS):
        before = make_batch(shard, index, step, ROWS, LENGTH, pad=3)
        after = make_batch(shard, index, step, ROWS, LENGTH, pad=3, drop=frozenset({shard.ids[record]}))
        touched = {row for s, row in places if s == step}
        outs = [model(torch.from_numpy(b.inputs), document_mask(torch.from_numpy(b.segments))) for b in (before, after)]
        for row in range(ROWS):
            same = (before.inputs[row] == after.inputs[row]).all() and (before.weight[row] == after.weight[row]).all()
            assert same == (row not in touched)
            if row not in touched:
                assert torch.equal(outs[0][row], outs[1][row])
            else:  # its neighbours in the row keep tokens, place and meaning
                rest = torch.from_numpy(after.weight[row] > 0)
                torch.testing.assert_close(outs[0][row][rest], outs[1][row][rest], atol=1e-5, rtol=1e-4)
                gone = (before.weight[row] > 0) & (after.weight[row] == 0)
                assert gone.any() and (after.targets[row][gone] == 3).all()
