"""Rules of ``model.head.kind=generation``: what makes no sense where the model learns to write responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.attack import Attack

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config


def check_generation(config: Config) -> None:
    """Refuse what needs classes, or would show a response to what is made for it.

    Raises
    ------
    ValueError
        Naming the keys, their values, and what would be right.
    """
    if config.model.head.kind != "generation":
        return
    tuner, attack = config.tuner, config.attacker
    made = None
    if tuner.kind == "prompt_mixture":
        made = "tuner.kind=prompt_mixture"
    elif tuner.kind == "late_prompt" and tuner.generator in ("appg", "mppg"):
        made = f"tuner.generator={tuner.generator}"
    if made is not None:
        raise ValueError(
            f"{made} makes its prompt of a whole text, so a response would be among what it is made of; with "
            "model.head.kind=generation use another tuner, such as lora or prefix"
        )
    task = config.data.task
    of_question = tuner.kind == "generated_prompt" or (tuner.kind == "late_prompt" and tuner.generator == "npg")
    if of_question and not isinstance(task, str) and task.learns_all:
        raise ValueError(
            f"tuner.kind={tuner.kind} makes its prompt of the last question, which earlier answers would see; with "
            "data.task.learn=all_answers use another tuner, such as lora or prefix"
        )
    if attack is not None and type(attack).labels is not Attack.labels:
        raise ValueError(
            f"attack.kind={config.attack.kind} changes labels, which are not learned with model.head.kind=generation; use an "
            "attack on what is sent, such as sign_flip"
        )
