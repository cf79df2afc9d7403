"""What sampling can be asked for: checks, and edits of logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from deepzig.errors import DeepZigError
from deepzig.runtime.sampling import SamplingOptions, logprob_of
from deepzig.runtime.structured import StructuredOutputs

REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"temperature": 2.5}, "temperature is 2.5", "temperature", "give a number from 0 to 2"),
    ({"temperature": "1"}, "temperature is '1'", "temperature", "give a number from 0 to 2"),
    ({"temperature": math.nan}, "temperature is nan", "temperature", "give a number from 0 to 2"),
    ({"top_p": -0.1}, "top_p is -0.1", "top_p", "give a number from 0 to 1"),
    ({"min_p": True}, "min_p is True", "min_p", "give a number from 0 to 1"),
    ({"top_k": 1.0}, "top_k is 1.0", "top_k", "give a whole number from 0 to 2.14748e+09"),
    ({"max_tokens": 0}, "max_tokens is 0", "max_tokens", "give a whole number from 1"),
    ({"max_completion_tokens": -3}, "max_tokens is -3", "max_tokens", "give a whole number from 1"),
    ({"min_tokens": -1}, "min_tokens is -1", "min_tokens", "give a whole number from 0"),
    (
        {"min_tokens": 4, "max_tokens": 3}, "min_tokens is 4, and max_tokens 3", "min_tokens",
        "give no more than max_tokens",
    ),
    ({"n": 0}, "n is 0", "n", "give a whole number from 1 to 128"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs is 21", "top_logprobs", "give a whole number from 0 to 20"),
    ({"top_logprobs": 2}, "top_logprobs is given without logprobs", "top_logprobs", "give logprobs=True too"),
    ({"logprobs": 5}, "logprobs is 5", "logprobs", "give true or false"),
    ({"ignore_eos": "no"}, "ignore_eos is 'no'", "ignore_eos", "give true or false"),
    ({"stop": 5}, "stop is 5", "stop", "give a text or a list of texts, none of them empty"),
    ({"stop": ["a", ""]}, "stop is ['a', '']", "stop", "give a text or a list of texts, none of them empty"),
    ({"stop": b"a"}, "stop is b'a'", "stop", "give a text or a list of texts, none of them empty"),
    ({"stop_token_ids": 5}, "stop_token_ids is 5", "stop_token_ids", "give a list of token ids"),
    ({"stop_token_ids": "5"}, "stop_token_ids is '5'", "stop_token_ids", "give a list of token ids"),
    ({"logit_bias": [5]}, "logit_bias is [5]", "logit_bias", "give token ids with a number for each"),
    ({"logit_bias": {"a": 1}}, "logit_bias is {'a': 1}", "logit_bias", "give token ids with a number for each"),
    ({"logit_bias": {5: -math.inf}}, "logit_bias is {5: -inf}", "logit_bias", "give numbers from -100 to 100"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0", "repetition_penalty", "give a number from 0.01 to 100"),
    (
        {"structured_outputs": {"regex": ""}},
        "regex is ''",
        "structured_outputs",
        "give a text that is not empty",
    ),
    ({"seed": 2**64}, f"seed is {2**64}", "seed", "give a whole number from -9.22337e+18 to 1.84467e+19"),
]


@pytest.mark.parametrize(("options", "what", "where", "hint"), REFUSED, ids=[repr(r[0]) for r in REFUSED])
def test_wrong_values(options: dict[str, Any], what: str, where: str, hint: str) -> None:
    with pytest.raises(DeepZigError) as caught:
        SamplingOptions.parse(options)
    assert str(caught.value) == f"{what}\n  at: option {where}\n  fix: {hint}"


def test_an_unknown_option() -> None:
    with pytest.raises(DeepZigError) as caught:
        SamplingOptions.parse({"best_of": 2})
    known = (
        "max_tokens, temperature, top_p, top_k, min_p, stop, stop_token_ids, seed, ignore_eos, logprobs, top_logprobs, "
        "n, speculate, presence_penalty, frequency_penalty, repetition_penalty, logit_bias, structured_outputs, "
        "min_tokens"
    )
    assert str(caught.value) == f"there is no option 'best_of'\n  at: generate\n  fix: choose from {known}"


def test_one_option_under_two_names() -> None:
    with pytest.raises(DeepZigError) as caught:
        SamplingOptions.parse({"max_tokens": 4, "max_completion_tokens": 4})
    assert str(caught.value) == (
        "max_tokens is given twice\n  at: option max_completion_tokens\n  fix: give one of the two names"
    )
    assert SamplingOptions.parse({"max_tokens": None, "max_completion_tokens": 4}).max_tokens == 4


def test_none_is_the_default() -> None:
    names = [*SamplingOptions.__dataclass_fields__]
    assert SamplingOptions.parse(dict.fromkeys(names)) == SamplingOptions()


def test_values_are_brought_to_one_type() -> None:
    """Also those given to the constructor: one stop text stays one text."""
    given = {"stop": "ab", "top_k": np.int64(3), "temperature": np.float32(0.5), "logit_bias": {"7": 1, np.int32(8): 2}}
    for options in (SamplingOptions(**given), SamplingOptions.parse(given)):  # type: ignore[arg-type]
        assert options.stop == ("ab",) and options.logit_bias == {7: 1.0, 8: 2.0}
        assert (options.top_k, type(options.top_k)) == (3, int)
        assert (options.temperature, type(options.temperature)) == (0.5, float)
    one, other = SamplingOptions(structured_outputs={"json": {}}), SamplingOptions(structured_outputs={"json": "{}"})
    assert one.structured_outputs == other.structured_outputs == StructuredOutputs.parse({"json": {}})
    assert SamplingOptions(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingOptions(stop_token_ids=np.array([3, 4])).stop_token_ids == (3, 4)  # type: ignore[arg-type]


def test_bias_of_tokens_that_do_not_exist() -> None:
    options = SamplingOptions.parse({"logit_bias": {"300": 1, 0: 1}})
    options.check_tokens(301)
    with pytest.raises(DeepZigError) as caught:
        options.check_tokens(300)
    assert str(caught.value) == ("token 300 is not in the vocabulary\n  at: option logit_bias\n  fix: use 0 to 299")


def test_keys_of_choices() -> None:
    """The first is the seed; the others are far from the seeds that people use."""
    options = SamplingOptions()
    words = [int(w) for w in options.key(-3, 0).view(np.uint32)]
    assert words[0] + (words[1] << 32) == 2**64 - 3
    keys = {options.key(seed, choice).tobytes() for seed in range(50) for choice in range(50)}
    assert len(keys) == 2500


def restated(logits: Any, prompt: list[int], said: list[int], o: SamplingOptions) -> Any:
    """The edits, token by token, in f64."""
    row = [float(x) for x in logits]
    for token, bias in o.logit_bias.items():
        row[token] += bias
    for token in {*prompt, *said}:
        row[token] = row[token] / o.repetition_penalty if row[token] > 0 else row[token] * o.repetition_penalty
    for token in said:
        row[token] -= o.frequency_penalty
    for token in set(said):
        row[token] -= o.presence_penalty
    return np.array(row)


@pytest.mark.parametrize("seed", range(8))
def test_edits(seed: int) -> None:
    """f32: within 1e-5 of the restatement, and untouched where nothing applies, bit for bit."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, 53).astype(np.float32)
    prompt, said = (rng.integers(0, 53, n).tolist() for n in (9, 17 * (seed % 3)))
    options = SamplingOptions.parse(
        {
            "presence_penalty": rng.uniform(-2, 2),
            "frequency_penalty": rng.uniform(-2, 2),
            "repetition_penalty": rng.uniform(0.5, 2),
            "logit_bias": {int(t): rng.uniform(-100, 100) for t in rng.integers(0, 53, 5)},
        }
    )
    edited = logits.copy()
    options.edit(edited, prompt, said)
    np.testing.assert_allclose(edited, restated(logits, prompt, said, options), rtol=1e-5, atol=1e-5)
    same = [t for t in range(53) if t not in {*prompt, *said, *options.logit_bias}]
    assert np.array_equal(edited[same], logits[same]) and same
    assert options.edits and not SamplingOptions().edits


def test_logprobs() -> None:
    """Against the definition in f64; the likeliest first, ties by lowest id; before any edit."""
    rng = np.random.default_rng(4)
    logits = np.round(rng.normal(0, 3, 211)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum()
    for top in (0, 1, 7, 20):
        got = logprob_of(logits, 17, top)
        assert got.token_id == 17 and math.isclose(got.logprob, math.log(p[17]), rel_tol=1e-12)
        want = sorted(range(211), key=lambda t: (-logits[t], t))[:top]
        assert [t for t, _ in got.top] == want
        np.testing.assert_allclose([v for _, v in got.top], np.log(p[want]), rtol=1e-12)
    assert len(logprob_of(logits[:5], 3, 20).top) == 5
