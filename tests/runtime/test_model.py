"""What a model does around its entry points: cuts, ends, limits, pages, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.engine.batch import draw
from deepzig.runtime.model import Model
from deepzig.runtime.sampling import SamplingOptions, logprob_of
from deepzig.sampling import NO_TOKEN

from . import fake

VOCAB = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), VOCAB)


def saying(folder: Path, text: str, prompt: int, **options: Any) -> Model:
    """A model whose greedy answer is `text` and an end token."""
    said = fake.model(folder, fake.babble(VOCAB))
    tokens = said.encode(text)[1:]
    return fake.model(folder, fake.script(VOCAB, prompt, tokens), **options)


def refusal(model: Model, prompt: Any, **options: Any) -> str:
    """Of `generate`, and at once of `stream`; no page stays taken."""
    errors = []
    for call in (model.generate, model.stream):
        with pytest.raises(DeepZigError) as caught:
            call(prompt, **options)
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and model.pool.free == model.pool.count
    return errors[0]


def backend(model: Model) -> fake.Backend:
    assert isinstance(model.backend, fake.Backend)
    return model.backend


@pytest.mark.parametrize("length", [1, 3, 7, 8, 9, 16, 21, 40])
def test_prompts_are_cut_at_multiples_of_the_chunk(length: int) -> None:
    model = fake.model(None, fake.babble(VOCAB))
    model.generate(list(range(2, 2 + length)), max_tokens=3, ignore_eos=True)
    *prompt, first, second = backend(model).calls
    want = [list(range(at, min(at + 8, length))) for at in range(0, length, 8)]
    assert [pos for _, pos in prompt] == want
    assert [entry for entry, _ in prompt] == ["decode" if len(pos) <= 3 else "prefill" for pos in want]
    assert [first, second] == [("decode", [length]), ("decode", [length + 1])]


def test_the_end_token_ends_and_is_not_told(folder: Path) -> None:
    model = saying(folder, "hi there", 2)
    result = model.generate([5, 6], logprobs=True, top_logprobs=2)
    assert (result.text, result.finish_reason, result.prompt_tokens) == ("hi there", "stop", 2)
    assert result.logprobs is not None and [p.token_id for p in result.logprobs] == list(result.token_ids)
    assert list(result.token_ids) == model.encode("hi there")[1:]
    *pieces, last = model.stream([5, 6])
    assert (last.token_id, last.finish_reason, last.logprob) == (-1, "stop", None)
    assert [p.token_id for p in pieces] == list(result.token_ids)
    assert [p.finish_reason for p in pieces] == [None] * len(pieces)


def test_an_answer_that_ends_at_once(folder: Path) -> None:
    model = saying(folder, "", 2)
    result = model.generate([5, 6], logprobs=True)
    assert (result.text, result.token_ids, result.finish_reason, result.logprobs) == ("", (), "stop", ())


def test_ignoring_the_end_token() -> None:
    model = fake.model(None, fake.script(VOCAB, 2, [7]))
    result = model.generate([5, 6], ignore_eos=True, max_tokens=4)
    assert (result.token_ids, result.finish_reason) == ((7, 1, 1, 1), "length")


def test_stop_tokens_end_even_if_end_tokens_are_ignored() -> None:
    model = fake.model(None, fake.script(VOCAB, 2, [7, 8, 9]))
    result = model.generate([5, 6], stop_token_ids=[9], ignore_eos=True)
    assert (result.token_ids, result.finish_reason) == ((7, 8), "stop")


@pytest.mark.parametrize("stop", ["there", ["x", "there"], ("e, w", "re"), "hi"])
def test_stop_texts(folder: Path, stop: str | Sequence[str]) -> None:
    model = saying(folder, "oh, hi there, world", 2)
    result = model.generate([5, 6], stop=stop)
    want = {"there": "oh, hi ", "hi": "oh, "}.get(stop if isinstance(stop, str) else stop[1], "oh, hi the")
    assert (result.text, result.finish_reason) == (want, "stop")
    assert model.decode(result.token_ids).startswith(want) and len(model.decode(result.token_ids)) > len(want)
    assert "".join(p.text for p in model.stream([5, 6], stop=stop)) == want


def test_a_stop_text_that_is_held_at_the_end_is_shown_if_it_stays_unfinished(folder: Path) -> None:
    model = saying(folder, "one two", 2)
    for options in ({}, {"max_tokens": len(model.encode("one two")) - 1}):
        result = model.generate([5, 6], stop="two!", **options)
        assert (result.text, result.finish_reason) == ("one two", "length" if options else "stop")


def test_a_stop_text_in_the_bytes_left_over(folder: Path) -> None:
    """The last token is half a character: its replacement comes with the flush, and may be the stop."""
    model = saying(folder, "ab漢", 2)
    count = len(model.encode("ab漢")) - 2
    result = model.generate([5, 6], stop="\ufffd", max_tokens=count)
    assert (result.text, result.finish_reason, len(result.token_ids)) == ("ab", "stop", count)
    assert model.generate([5, 6], max_tokens=count).text == "ab\ufffd"
    broken = fake.model(folder, fake.script(VOCAB, 2, model.encode("ab漢")[1:-1]))
    assert broken.generate([5, 6], stop="b\ufffd").text == "a"
    assert broken.generate([5, 6]).text == "ab\ufffd"


def test_max_tokens() -> None:
    model = fake.model(None, fake.script(VOCAB, 2, list(range(10, 40))))
    for options in ({"max_tokens": 5}, {"max_completion_tokens": np.int64(5)}):
        result = model.generate([5, 6], **options)
        assert (result.token_ids, result.finish_reason) == (tuple(range(10, 15)), "length")
    assert len(backend(model).calls) == 2 * 5  # the last token is never run


@pytest.mark.parametrize(("pages", "context"), [(15, 60), (20, 60), (3, 12)])
def test_a_full_context_ends_the_answer(pages: int, context: int) -> None:
    """Whether the model's or the cache's."""
    model = fake.model(None, fake.babble(VOCAB), pages=pages)
    for options in ({}, {"max_tokens": 1000}):
        result = model.generate([5, 6, 7], ignore_eos=True, **options)
        assert len(result.token_ids) == context - 3 and result.finish_reason == "length"
        assert model.pool.free == pages and model.context == context
    one = model.generate([5] * (context - 1), ignore_eos=True)
    assert len(one.token_ids) == 1 and one.finish_reason == "length"


def test_prompts_that_do_not_fit(folder: Path) -> None:
    model = fake.model(folder, fake.babble(VOCAB))
    assert refusal(model, [5] * 60) == "the prompt has 60 tokens\n  at: prompt\n  fix: give at most 59"
    small = fake.model(folder, fake.babble(VOCAB), pages=3)
    assert refusal(small, [5] * 12) == (
        "the prompt has 12 tokens\n  at: prompt\n  fix: give at most 11, or load the model with a larger cache_tokens"
    )
    with pytest.raises(DeepZigError, match="give at most 60"):
        model.logits([5] * 61)


CHOICES = "give a text, a list of chat messages or a list of token ids"


@pytest.mark.parametrize(
    ("prompt", "what", "hint"),
    [
        ([], "the prompt is empty", "give at least one token"),
        (np.array([], np.int32), "the prompt is empty", "give at least one token"),
        ([5, 300], "prompt has 300", "use 0 to 299"),
        ([-1], "prompt has -1", "use 0 to 299"),
        ([2**70], f"prompt has {2**70}", "use 0 to 299"),
        ([5, 1.0], "the prompt has 1.0, which is no token id", CHOICES),
        (["5"], "the prompt has '5', which is no token id", CHOICES),
        ([True], "the prompt has True, which is no token id", CHOICES),
        (b"ab", "a prompt can't be of type bytes", CHOICES),
        (None, "a prompt can't be of type NoneType", CHOICES),
        (7, "a prompt can't be of type int", CHOICES),
        ({"role": "user"}, "a prompt can't be of type dict", CHOICES),
        ([{"role": "user", "content": "x"}, 5], None, CHOICES),
    ],
    ids=str,
)
def test_wrong_prompts(prompt: Any, what: str | None, hint: str, folder: Path) -> None:
    model = fake.model(folder, fake.babble(VOCAB))
    told = refusal(model, prompt).splitlines()
    assert told[1:] == ["  at: prompt", f"  fix: {hint}"]
    assert what is None or told[0] == what


def test_prompts_of_all_kinds(folder: Path) -> None:
    model = fake.model(folder, fake.babble(VOCAB))
    ids = model.encode("hi <|user|>")
    text = model.generate("hi <|user|>", max_tokens=4, ignore_eos=True)
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16), iter(ids), list(map(np.int32, ids))):
        assert model.generate(prompt, max_tokens=4, ignore_eos=True) == text  # type: ignore[arg-type]
    chat = model.generate([{"role": "user", "content": "hi"}], max_tokens=4)
    assert chat.prompt_tokens == len(model.encode("<|user|>hi<|assistant|>"))


def test_chat_options(folder: Path) -> None:
    model = fake.model(folder, fake.babble(VOCAB), positions=200, pages=50)
    messages = [{"role": "user", "content": "hi"}]
    own = "{{ tools | length }}{{ x }}{{ messages[0].content }}"
    result = model.generate(
        messages, tools=[{"name": "f"}], chat_template=own, chat_template_kwargs={"x": "y"}, max_tokens=2
    )
    assert result.prompt_tokens == len(model.encode("1yhi")) - 1
    assert refusal(model, "hi", tools=[{"name": "f"}]) == (
        "chat options are given without messages\n  at: prompt\n  fix: give a list of chat messages"
    )
    assert refusal(model, messages, tools="f") == (
        "tools is no list of objects\n  at: option tools\n  fix: give a JSON schema for each function"
    )
    assert refusal(model, messages, chat_template_kwargs={"messages": []}) == (
        "chat_template_kwargs has messages\n  at: option chat_template_kwargs\n  fix: give it as an option of its own"
    )
    assert refusal(model, messages, chat_template_kwargs=[1]) == (
        "chat_template_kwargs is no object\n  at: option chat_template_kwargs\n  fix: give names with values"
    )


def test_without_a_tokenizer_there_are_only_ids() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    assert model.generate([5], max_tokens=3, ignore_eos=True).text == ""
    assert refusal(model, "hi") == (
        "the artifact has no tokenizer\n  at: nowhere/tokenizer.json\n"
        "  fix: give token ids, or compile a checkpoint with tokenizer.json"
    )


def test_the_same_seed_says_the_same() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    options = {"temperature": 1.0, "max_tokens": 12, "ignore_eos": True}
    first, again, other, free, free_again = (
        model.generate([5, 6], **options, seed=seed).token_ids for seed in (4, 4, 5, None, None)
    )
    assert first == again != other and free != free_again
    assert model.generate([5, 6], **options, seed=-1) == model.generate([5, 6], **options, seed=2**64 - 1)


def test_several_choices() -> None:
    """The first is the answer of n=1; all differ; the prompt is read once, and one call reads a row of each."""
    model = fake.model(None, fake.babble(VOCAB), pages=40, batch=4)
    options = {"temperature": 1.0, "max_tokens": 9, "ignore_eos": True, "seed": 11, "logprobs": True}
    prompt = list(range(2, 12))
    many = model.generate(prompt, **options, n=4)
    assert [len(pos) for _, pos in backend(model).calls] == [8, 2, *[4] * 8]
    alone = model.generate(prompt, **options)
    assert many.choices[0] == alone.choices[0] and len({c.token_ids for c in many.choices}) == 4
    assert (many.text, many.token_ids, many.logprobs) == (alone.text, alone.token_ids, alone.logprobs)
    for choice in many.choices:
        past = list(prompt)
        assert choice.logprobs is not None
        for token, logprob in zip(choice.token_ids, choice.logprobs, strict=True):
            assert logprob == logprob_of(fake.babble(VOCAB)(past), token, 0)
            past.append(token)
    assert alone.choices == (alone.choices[0],) and model.pool.free == 40
    assert (many.cached_tokens, alone.cached_tokens) == (0, 8)


def test_a_stream_has_one_answer() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    with pytest.raises(DeepZigError) as caught:
        model.stream([5], n=2)
    assert str(caught.value) == "a stream has one answer, not 2\n  at: option n\n  fix: use generate, or n=1"


def test_penalties_and_bias_reach_the_sampler() -> None:
    flat = fake.model(None, lambda past: np.full(VOCAB, 1.0, np.float32))
    assert flat.generate([5], max_tokens=3).token_ids == (0, 0, 0)
    barred = {"max_tokens": 6, "logit_bias": {0: -100, 1: -100}}
    assert flat.generate([2], **barred).token_ids == (2,) * 6
    assert flat.generate([2], **barred, presence_penalty=0.5).token_ids == (2, 3, 4, 5, 6, 7)
    assert flat.generate([2], **barred, frequency_penalty=0.5).token_ids == (2, 3, 4, 5, 6, 7)
    assert flat.generate([2, 4], **barred, repetition_penalty=1.5).token_ids == (3, 5, 6, 7, 8, 9)


def test_logits_that_are_no_numbers() -> None:
    model = fake.model(None, lambda past: np.full(VOCAB, np.nan if len(past) > 3 else 1.0, np.float32))
    with pytest.raises(DeepZigError) as caught:
        model.generate([5, 6], ignore_eos=True)
    assert str(caught.value) == (
        "the model computed logits that are no numbers\n  at: fake\n  fix: compile with another --dtype"
    )
    assert model.pool.free == model.pool.count


def test_edits_do_not_hide_logits_that_are_no_numbers() -> None:
    model = fake.model(None, lambda past: np.full(VOCAB, np.nan, np.float32))
    with pytest.raises(DeepZigError, match="logits that are no numbers"):
        model.generate([5, 6], presence_penalty=1, repetition_penalty=1.5, logit_bias={7: -100})


@pytest.mark.parametrize("options", [{"frequency_penalty": 0.5, "repetition_penalty": 1.5}, {"presence_penalty": 1.0}])
def test_rows_are_edited_as_if_the_guesses_were_right(options: dict[str, Any]) -> None:
    """Three tokens take turns, which are guessed; each row is edited for the tokens before it, guesses among them."""
    model = fake.model(None, lambda past: np.where(np.arange(VOCAB) == past[-1] % 3 + 2, 4, 0).astype(np.float32))
    prompt = [2, 3, 4, 2, 3, 4, 2]
    plain = model.generate(prompt, max_tokens=30, ignore_eos=True, logprobs=True, **options)
    ahead = model.generate(prompt, max_tokens=30, ignore_eos=True, logprobs=True, speculate=2, **options)
    assert ahead.choices == plain.choices and ahead.guessed_tokens > 0
    past = list(prompt)
    for token in plain.token_ids:
        row = np.where(np.arange(VOCAB) == past[-1] % 3 + 2, 4, 0).astype(np.float32)
        SamplingOptions(**options).edit(row, prompt, past[len(prompt) :])
        assert token == int(row.argmax())
        past.append(token)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_told_by_the_op(value: float) -> None:
    """Not those of rows behind a wrong guess, which nobody reads."""
    logits = np.random.default_rng(4).standard_normal((3, VOCAB)).astype(np.float32)
    logits[1, 7] = value
    model = fake.model(None, fake.babble(VOCAB))
    options = SamplingOptions(temperature=0.5)
    drawn = draw(model.backend, logits, [options] * 3, [options.key(1, 0)] * 3, [4, 5, 6])
    assert [token == NO_TOKEN for token in drawn] == [False, True, False]


def test_a_stream_that_is_left_early_gives_its_pages_back() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    for leave in ("close", "break"):
        stream = model.stream([5] * 9, ignore_eos=True)
        next(stream)
        if leave == "close":
            stream.close()  # type: ignore[attr-defined]
        del stream
        assert model.pool.free == 15
    for _ in model.stream([5], ignore_eos=True):
        break
    assert model.pool.free == 15


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DeepZigError("a", "b", "c")])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_failing_call_gives_the_pages_back(error: Any, at: int) -> None:
    model = fake.model(None, fake.babble(VOCAB))
    call, calls = backend(model).call, 0

    def failing(entry: str, inputs: Any) -> Any:
        nonlocal calls
        calls += entry != "sample"
        if calls == at:
            raise error
        return call(entry, inputs)

    backend(model).call = failing  # type: ignore[method-assign]
    with pytest.raises(error if isinstance(error, type) else DeepZigError):
        model.generate([5] * 15, ignore_eos=True)
    assert model.pool.free == model.pool.count


def test_a_cache_that_others_hold_is_waited_for() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    want = model.generate([5] * 12, ignore_eos=True, max_tokens=9)
    held = model.pool.take(12)
    generation = model.submit([5] * 12, ignore_eos=True, max_tokens=9)
    stop = time.monotonic() + 0.2
    while time.monotonic() < stop:
        assert model.engine.stats().running == 0 and model.pool.free <= 3
    model.pool.give_back(held)
    assert generation.result().token_ids == want.token_ids


def test_threads_do_not_disturb_each_other() -> None:
    model = fake.model(None, fake.babble(VOCAB), pages=80)
    prompts = [[i, *range(2, 2 + i)] for i in range(2, 10)]
    want = [model.generate(p, max_tokens=15, ignore_eos=True) for p in prompts]
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        got[i] = model.generate(prompts[i], max_tokens=15, ignore_eos=True)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(prompts))] == want and model.pool.free == 80


def test_logits_of_all_positions() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    tokens = list(range(3, 24))
    want = [fake.babble(VOCAB)(tokens[: i + 1]) for i in range(len(tokens))]
    assert np.array_equal(model.logits(tokens), np.array(want)) and model.pool.free == 15


def rows(**change: Any) -> dict[str, Any]:
    """Five rows of two sequences."""
    base: dict[str, Any] = {
        "tokens": [9, 8, 7, 6, 5], "seq": [1, 1, 1, 0, 0], "pos": [0, 1, 2, 0, 1], "block_table": [[3], [4]],
        "out_rows": [4, 0],
    }  # fmt: skip
    return {k: np.array(v) for k, v in {**base, **change}.items()}


def test_rows_of_several_sequences() -> None:
    model = fake.model(None, fake.babble(VOCAB))
    want = [fake.babble(VOCAB)(past) for past in ([6, 5], [9])]
    assert np.array_equal(model.forward(**rows()), np.array(want))
    assert backend(model).calls[-1][0] == "decode"
    model.forward(**rows(), entry="prefill")
    assert backend(model).calls[-1][0] == "prefill"
    assert model.forward(**rows(out_rows=[])).shape[0] == 0


@pytest.mark.parametrize(
    ("change", "what", "where", "hint"),
    [
        ({"tokens": [9, 8, 7, 6, 300]}, "tokens has 300", "tokens", "use 0 to 299"),
        ({"tokens": [9, 8, 7, 6, -2]}, "tokens has -2", "tokens", "use 0 to 299"),
        ({"tokens": [9, 8, 7, 6, 5.0]}, "tokens is float64[5]", "tokens", "give whole numbers in 1 dimensions"),
        ({"tokens": [[9, 8, 7, 6, 5]]}, "tokens is int64[1, 5]", "tokens", "give whole numbers in 1 dimensions"),
        ({"tokens": []}, "0 rows do not fit", "tokens", "give 1 to 24 rows"),
        ({"tokens": [5] * 25}, "25 rows do not fit", "tokens", "give 1 to 24 rows"),
        ({"tokens": [9, 8, 7, 6]}, None, None, "give as many"),
        ({"seq": [2, 2, 2, 0, 0]}, "seq has 2", "seq", "use 0 to 1"),
        ({"seq": [1, 1, 0, 1, 0]}, "the rows of a sequence lie apart", "seq", "put them together"),
        ({"pos": [0, 1, 1, 0, 1]}, "the positions of a sequence do not ascend", "pos", "sort its rows by position"),
        ({"pos": [0, 1, 4, 0, 1]}, "pos has 4", "pos", "use 0 to 3"),
        ({"pos": [0, 1, 2**33, 0, 1]}, f"pos has {2**33}", "pos", "use 0 to 3"),
        ({"block_table": [[3], [15]]}, "block_table has 15", "block_table", "use 0 to 14"),
        ({"block_table": [3, 4]}, "block_table is int64[2]", "block_table", "give whole numbers in 2 dimensions"),
        ({"block_table": [[3]] * 4}, "4 sequences do not fit", "block_table", "give 1 to 3 sequences"),
        ({"out_rows": [5]}, "out_rows has 5", "out_rows", "use 0 to 4"),
        ({"route": np.ones((5, 1, 2), int)}, "the expert choice is forced only where the artifact asks for it", "route",
         "compile with --debug-route"),
        ({"entry": "sampel"}, "no entry point is called array('sampel', dtype='<U6')", "forward", None),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_rows_that_kernels_must_not_see(change: Any, what: str | None, where: str | None, hint: str | None) -> None:
    model = fake.model(None, fake.babble(VOCAB))
    given = rows(**change)
    if "entry" in change:
        given, what = {**rows(), "entry": "sampel"}, "no entry point is called 'sampel'"
        hint = "choose from prefill, decode, sample"
    with pytest.raises(DeepZigError) as caught:
        model.forward(**given)
    told = str(caught.value).splitlines()
    assert told[2] == f"  fix: {hint}"
    assert what is None or told[:2] == [what, f"  at: {where}"]
    assert not backend(model).calls


def test_closing(folder: Path) -> None:
    with fake.model(folder, fake.babble(VOCAB)) as model:
        assert not backend(model).closed
    assert backend(model).closed
