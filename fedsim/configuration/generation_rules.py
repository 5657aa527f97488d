"""Rules of ``model.head.kind=generation``: what makes no sense where the model learns to write responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsim.core.attack import Attack

if TYPE_CHECKING:
    from fedsim.configuration.schema import Config
    from fedsim.simulation.config import GenerateConfig


def check_written(generate: GenerateConfig | None, metric: str, key: str, in_rounds: bool) -> None:
    """Refuse to look at a metric of written responses where it is not on record.

    Parameters
    ----------
    key
        The key that names it, with its value.
    in_rounds
        Whether it is looked at in rounds before the last one.

    Raises
    ------
    ValueError
        Naming the key, and what would be right.
    """
    if generate is None:
        raise ValueError(
            f"{key} is a metric of what the model writes, but it writes nothing; give evaluation.generate"
            f"{'.every, such as 1' if in_rounds else ', such as {examples: 64}'}"
        )
    if metric not in generate.metrics:
        raise ValueError(
            f"{key} is not among evaluation.generate.metrics={list(generate.metrics)}; add {metric} to them".replace(
                "'", ""
            )
        )
    if in_rounds and not generate.every:
        raise ValueError(
            f"{key} is looked at in the rounds in which the model writes, but with evaluation.generate.every=0 it writes after "
            "the last one alone; set evaluation.generate.every to 1, or to more rounds"
        )


def check_reachable(target: float | None, metric: str, key: str) -> None:
    """Refuse a target that no text metric can reach, such as one in per cent.

    Raises
    ------
    ValueError
        Naming the key, and what would be right.
    """
    if target is not None and target > 1:
        raise ValueError(f"{key}={target:g} cannot be reached, since {metric} is at most 1; 40 % is 0.4")


def check_generation(config: Config) -> None:
    """Refuse what needs classes, or would show a response to what is made for it.

    Raises
    ------
    ValueError
        Naming the keys, their values, and what would be right.
    """
    if config.model.head.kind != "generation":
        return
    if (metric := config.stop.metric) is not None:
        check_written(config.evaluation.generate, metric, f"stop.metric={metric}", in_rounds=True)
        check_reachable(config.stop.target, metric, "stop.target")
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
