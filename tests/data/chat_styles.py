"""The small tokenizers with chat templates as published models have them."""

import copy

from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM's and Qwen2's, without a system message of their own."""
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Qwen3's: the last answer has an empty thought before it."""
INST = (
    "{% if messages[0]['role'] == 'system' %}{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set head = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (head if loop.index0 == 0 else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""LLaMA 2's: the system message stands in the first question."""
DATED = (
    "{% for message in messages %}{% if loop.first %}{{ '<|im_start|>' + (date_string or '') + strftime_now('%Y') + '\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""With a date, as LLaMA 3's and gpt-oss's."""


STYLES = ("chatml", "thinking", "dated", "inst", "plain_ends")
"""plain_ends: turns end with a token that is added, but not called special."""


def with_chat(tokenizers: dict[str, PreTrainedTokenizerBase], style: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the chat template of a style."""
    tokenizer = copy.deepcopy(tokenizers["llama" if style == "inst" else "gpt2"])
    turns = ["<|im_start|>", "<|im_end|>"]
    if style == "plain_ends":
        tokenizer.add_tokens(turns)
    elif style != "inst":
        tokenizer.add_special_tokens({"eos_token": turns[1], "unk_token": "<|endoftext|>", "bos_token": turns[0]})
        tokenizer.add_tokens(["<think>", "</think>"])
    templates = {"chatml": CHATML, "thinking": THINKING, "dated": DATED, "inst": INST, "plain_ends": CHATML}
    tokenizer.chat_template = templates[style]
    return tokenizer
