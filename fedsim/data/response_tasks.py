"""The built-in tasks of responses: instructions, dialogues and summaries, with their published prompts.

========================= ========================================================================================
task                      prompt
========================= ========================================================================================
alpaca                    Stanford Alpaca's two prompts (Taori et al. 2023): with an input, and without
dolly                     the prompts of Databricks' Dolly (2023); its category is the label to deal by
flowertune_*              that of Flower's FlowerTune leaderboard, which is Alpaca's without empty lines
fedllm_bench              that of FedLLM-Bench (Ye et al. 2024, arXiv 2406.04845), for its instruction data
fedllm_bench_dialogue     the chat template of the tokenizer, for the multi-turn part of Fed-WildChat
messages                  the chat template of the tokenizer, for columns of messages
xsum, samsum,             the text and "TL;DR:" (Radford et al. 2019, section 3.6)
cnn_dailymail
========================= ========================================================================================
"""

from __future__ import annotations

from fedsim.data.config import TaskConfig

_INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_INTRO_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request."
)
DOLLY_CATEGORIES = (
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa", "information_extraction", "open_qa",
    "summarization",
)  # fmt: skip


def _flowertune(domain: str, with_input: bool) -> TaskConfig:
    """Return a task of the leaderboard; finance and code append the input to the instruction, the others have none."""
    prompt = f"{_INTRO}\n### Instruction:\n{{instruction}}{{with_input}}\n### Response:"
    name = f"flowertune_{domain}"
    without = prompt.replace("{with_input}", "")
    if not with_input:
        return TaskConfig(name=name, fields=("instruction", "response"), template=without, response=" {response}")
    return TaskConfig(
        name=name,
        fields=("instruction", "input", "response"),
        template=prompt.replace("{with_input}", " {input}"),
        response=" {response}",
        optional_fields=("input",),
        template_without={"input": without},
    )


def _summary(name: str) -> TaskConfig:
    return TaskConfig(name=name, fields=("document", "summary"), template="{document}\nTL;DR:", response=" {summary}")


def _dialogue(name: str, field: str) -> TaskConfig:
    return TaskConfig(name=name, fields=(field,), dialogue=True, chat=True)


RESPONSE_TASKS: tuple[TaskConfig, ...] = (
    TaskConfig(
        name="alpaca",
        fields=("instruction", "input", "output"),
        template=f"{_INTRO_WITH_INPUT}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:",
        response="{output}",
        optional_fields=("input",),
        template_without={"input": f"{_INTRO}\n\n### Instruction:\n{{instruction}}\n\n### Response:"},
    ),
    TaskConfig(
        name="dolly",
        fields=("instruction", "context", "response"),
        template=f"{_INTRO}\n\n### Instruction:\n{{instruction}}\n\nInput:\n{{context}}\n\n### Response:\n",
        response="{response}",
        optional_fields=("context",),
        template_without={"context": f"{_INTRO}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"},
        label_field="category",
        labels=DOLLY_CATEGORIES,
    ),
    _flowertune("general", with_input=False),
    _flowertune("finance", with_input=True),
    _flowertune("medical", with_input=False),
    _flowertune("code", with_input=True),
    TaskConfig(
        name="fedllm_bench",
        fields=("instruction", "response"),
        template=f"{_INTRO}\n\n### Instruction:\n{{instruction}} \n\n### Response:",
        response=" {response}",
    ),
    _dialogue("fedllm_bench_dialogue", "conversations"),
    _dialogue("messages", "messages"),
    _summary("xsum"),
    _summary("samsum"),
    _summary("cnn_dailymail"),
)
"""The built-in tasks of responses."""
