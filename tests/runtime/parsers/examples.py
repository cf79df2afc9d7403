"""Answers in the formats of models, whole, cut and muddled: format, prompt, answer, and what it says."""

from __future__ import annotations

from deepzig.runtime.parsers import FORMATS

from .answers import Read

BEGIN, END, CALL, SEP, DONE = FORMATS["deepseek-v3"].marks.values()
K_BEGIN, K_END, K_CALL, K_SEP, K_DONE = FORMATS["kimi-k2"].marks.values()
V3_CALL = CALL + "function" + SEP + "{}\n```json\n{}\n```" + DONE
THINKING = "<｜User｜>hm<｜Assistant｜><think>\n"

EXAMPLES: dict[str, tuple[str, str, str, Read]] = {
    "V3: text only": ("deepseek-v3", "", "Grüße, 世界! 👩‍👩‍👧", Read("Grüße, 世界! 👩‍👩‍👧")),
    "V3: one call": (
        "deepseek-v3", "", BEGIN + V3_CALL.format("get_weather", '{"city": "München", "days": 3}') + END,
        Read(calls=[("id0", "get_weather", '{"city": "München", "days": 3}')]),
    ),
    "V3: text, then two calls": (
        "deepseek-v3", "", f"I'll look.{BEGIN}" + V3_CALL.format("f", '{"a": {"b": [1, {}]}}') + "\n" + V3_CALL.format("g", "{}") + END,
        Read("I'll look.", calls=[("id0", "f", '{"a": {"b": [1, {}]}}'), ("id1", "g", "{}")]),
    ),
    "V3: fences within the arguments": (
        "deepseek-v3", "", BEGIN + V3_CALL.format("f", '{"md": "x\n```json\n{}\n```\n"}\n') + END + "after",
        Read("after", calls=[("id0", "f", '{"md": "x\n```json\n{}\n```\n"}\n')]),
    ),
    "V3: a line after the fence": (
        "deepseek-v3", "", BEGIN + V3_CALL.format("f", "{}").replace("```" + DONE, "```\n" + DONE) + END,
        Read(calls=[("id0", "f", "{}")]),
    ),
    "V3: no fence": (
        "deepseek-v3", "", f"{BEGIN}{CALL}function{SEP}f\n{{}}{DONE}{END}", Read(f"{CALL}function{SEP}f\n{{}}{DONE}"),
    ),
    "V3: no separator, then a good call": (
        "deepseek-v3", "", f"{BEGIN}{CALL}f{DONE}" + V3_CALL.format("g", "{}") + END,
        Read(f"{CALL}f{DONE}", calls=[("id0", "g", "{}")]),
    ),
    "V3: cut in the arguments": (
        "deepseek-v3", "", f"{BEGIN}{CALL}function{SEP}f\n```json\n{{\"a\": \"Os", Read(calls=[("id0", "f", '{"a": "Os')]),
    ),
    "V3: cut in the fence": (
        "deepseek-v3", "", f"{BEGIN}{CALL}function{SEP}f\n```json\n{{}}\n``", Read(calls=[("id0", "f", "{}\n``")]),
    ),
    "R1: reasoning that the prompt opened": (
        "deepseek-v3", THINKING, "Hm, <think>?\n</think>\n\n42 </think> is it.", Read("\n\n42 </think> is it.", "Hm, <think>?\n"),
    ),
    "R1: reasoning that the answer opens": ("deepseek-v3", "", "<think>\nHm</think>42", Read("42", "\nHm")),
    "R1: a call after reasoning": (
        "deepseek-v3", THINKING, f"Hm</think>\n{BEGIN}" + V3_CALL.format("now", "{}") + END,
        Read("\n", "Hm", [("id0", "now", "{}")]),
    ),
    "R1: a call out of reasoning": (
        "deepseek-v3", THINKING, f"Hm{BEGIN}" + V3_CALL.format("now", "{}") + END, Read("", "Hm", [("id0", "now", "{}")]),
    ),
    "V3.1: no reasoning": ("deepseek-v3.1", "<｜Assistant｜></think>", "<4>", Read("<4>")),
    "V3.1: reasoning": ("deepseek-v3.1", "<｜Assistant｜><think>", "a</think>b", Read("b", "a")),
    "V3.1: two calls": (
        "deepseek-v3.1", "", f"Ok{BEGIN}{CALL}f{SEP}{{\"q\": \"日本\"}}{DONE}{CALL}g{SEP}{{}}{DONE}{END}",
        Read("Ok", calls=[("id0", "f", '{"q": "日本"}'), ("id1", "g", "{}")]),
    ),
    "V3.1: arguments that are no JSON": (
        "deepseek-v3.1", "", f"{BEGIN}{CALL}f{SEP}city=Oslo\n```{DONE}{END}", Read(calls=[("id0", "f", "city=Oslo\n```")]),
    ),
    "V3.1: marks that end nothing, and marks in arguments": (
        "deepseek-v3.1", "", f"a{END}{DONE}b{BEGIN}{CALL}f{SEP}\"{SEP}</think>\"{DONE}{END}{END}",
        Read(f"a{END}{DONE}b{END}", calls=[("id0", "f", f'"{SEP}</think>"')]),
    ),
    "V3.1: no end of the call, nor of the section": (
        "deepseek-v3.1", "", f"{BEGIN}{CALL}f{SEP}{{}}{CALL}g{SEP}1{END}", Read(calls=[("id0", "f", "{}"), ("id1", "g", "1")]),
    ),
    "V3.1: a call without a section, text after": (
        "deepseek-v3.1", "", f"{CALL}f{SEP}{{}}{DONE} so", Read(" so", calls=[("id0", "f", "{}")]),
    ),
    "V3.1: text between calls": (
        "deepseek-v3.1", "", f"{BEGIN}and {CALL}f{SEP}{{}}{DONE}\n or \n{END}", Read("and \n or \n", calls=[("id0", "f", "{}")]),
    ),
    "V3.1: no name": ("deepseek-v3.1", "", f"{BEGIN}{CALL} {SEP}{{}}{DONE}{END}", Read(f"{CALL} {SEP}{{}}{DONE}")),
    "V3.1: cut in the name": ("deepseek-v3.1", "", f"x{BEGIN}{CALL}get_w", Read(f"x{CALL}get_w")),
    "V3.1: cut between calls": ("deepseek-v3.1", "", f"{BEGIN}{CALL}f{SEP}{{}}{DONE}\n", Read(calls=[("id0", "f", "{}")])),
    "V3.1: a mark's text as plain text": ("deepseek-v3.1", "", "<｜tool▁calls▁be" "gin>", Read("<｜tool▁calls▁begin>")),
    "K2: two calls": (
        "kimi-k2", "<|im_middle|>", f"Ok{K_BEGIN}{K_CALL}functions.get_weather:0{K_SEP}{{\"city\": \"Zürich\"}}{K_DONE}"
        f"{K_CALL}functions.now:1{K_SEP}{{}}{K_DONE}{K_END}",
        Read("Ok", calls=[("functions.get_weather:0", "get_weather", '{"city": "Zürich"}'), ("functions.now:1", "now", "{}")]),
    ),
    "K2: reasoning, blanks, a name with dots": (
        "kimi-k2", "<|im_middle|>", f"<think>a b</think>{K_BEGIN}{K_CALL} functions.mcp.f-1:12 {K_SEP} {{}} {K_DONE}{K_END}",
        Read("", "a b", [("functions.mcp.f-1:12", "mcp.f-1", " {} ")]),
    ),
    "K2: a short id": ("kimi-k2", "", f"{K_CALL}f:3{K_SEP}1{K_DONE}", Read(calls=[("f:3", "f", "1")])),
    "K2: an id without a name": (
        "kimi-k2", "", f"{K_BEGIN}{K_CALL}call_1{K_SEP}{{}}{K_DONE}{K_END}", Read(f"{K_CALL}call_1{K_SEP}{{}}{K_DONE}"),
    ),
}  # fmt: skip
