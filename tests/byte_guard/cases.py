"""The runs: for each, the words of the command line that make it another run than ``BASE``.

A case sets no key that its kinds have no use for.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE = (
    "rounds=2 seed=0 executor=local group_size=2 model.path=embedded model.device=cpu "
    "data.task=reviews data.train_examples=100 data.validation_examples=20 "
    "partition.clients=8 sampling.clients_per_round=5 prompt.length=3 layers.choose=all "
    # fuse: auto is settled by a trial that takes time, and other clients to a pass are other last bits.
    "client.epochs=1 client.fuse=2 client.threads=1 tracking.plots=false"
)
"""Eight clients, five a round in groups of 2, 2 and 1."""

STATEFUL = (
    "rounds=4 server.kind=fedpeptao layers.choose=top layers.share=0.5 layers.unselected=local "
    "client.optimizer.moments=keep client.schedule.kind=linear client.schedule.total_steps=40 "
    "sampling.dropout=0.2"
)
"""A state of every kind: moments, control variates, personal prompts, and a draw of who is in reach."""


PRIVATE = (
    "server.kind=fedavg server.weighting=uniform partition.holdout_fraction=0 privacy.clip_norm=0.5 "
    "privacy.noise_multiplier=1.0"
)
"""What every private run needs."""


@dataclass(frozen=True)
class Case:
    """One run, in one part or in two."""

    words: str
    """``KEY=VALUE`` words. ``{model:FAMILY}`` stands for a tiny model, ``{run:NAME}`` for the folder of an earlier case,
    ``{data:dialogues}`` for files of dialogues."""
    stop_after: int | None = None
    """End after so many rounds, then resume to the end."""
    losses: bool = False
    """Hash the evaluations' losses as well. Prompt files are float32, which hides the order in which a server adds in
    float64; losses of a float64 model show it."""
    share: bool = False
    """Hash the estimated share of layers as well, of which the prompt file shows no more than it rounds up to."""


_WORDY = (
    'data.task={"name":"reviews","fields":["text"],"labels":["negative","positive"],"template":"{text}\\u0020It\\u0020was\\u0020<mask>",'
    '"label_words":["terrible",["great","not\\u0020bad"]]}'
)
"""Words of one token and of two, for a class and for another; without spaces, as words of the command line are."""

_TALKS = (
    'data.source=files data.path={data:dialogues} data.task={"name":"talks","fields":["messages"],"dialogue":true,"chat":true,'
    '"learn":"all_answers"}'
)

CASES: dict[str, Case] = {
    # -- server.kind, client.correction --------------------------------------------------------------------------------
    "fedavg": Case("server.kind=fedavg server.weighting=examples client.correction=none partition.kind=iid"),
    "fedavg, half steps": Case(
        "server.kind=fedavg server.lr=0.5 server.lr_decay=0.9 server.weighting=uniform client.fuse=off "
        "client.shuffle=false client.micro_batch_tokens=64"
    ),
    "fedprox": Case(
        "server.kind=fedprox client.correction=proximal client.proximal_mu=0.05 "
        "client.optimizer.kind=sgd client.optimizer.momentum=0.5 client.optimizer.clip_norm=0.02 "
        "partition.kind=dirichlet_class partition.alpha=0.5"
    ),
    "scaffold": Case(
        "rounds=3 server.kind=scaffold server.control_form=scaffold client.correction=control "
        "client.optimizer.kind=sgd client.optimizer.lr=0.2 client.optimizer.weight_decay=0.0 "
        "sampling.kind=round_robin partition.kind=dirichlet_quantity partition.alpha=2.0"
    ),
    "scaffold, control by steps": Case(
        "rounds=3 server.kind=scaffold server.control_form=displacement server.control_mean=steps "
        "server.weighting=uniform client.correction=auto sampling.kind=by_size"
    ),
    "feddyn": Case(
        "rounds=3 server.kind=feddyn server.alpha=0.1 client.optimizer.kind=sgd client.optimizer.lr=0.2 partition.kind=iid"
    ),
    "fedavgm": Case("server.kind=fedavgm server.momentum=0.7 client.schedule.kind=cosine data.task=topics"),
    "fedadam": Case(
        "server.kind=fedadam server.beta2=0.95 client.schedule.kind=linear "
        "client.schedule.warmup_steps=1 client.epochs=3 data.task=agreement"
    ),
    "fedyogi": Case(
        "server.kind=fedyogi server.tau=0.01 client.schedule.kind=cosine "
        "client.schedule.total_steps=all_data partition.kind=label_shards "
        "partition.classes_per_client=1"
    ),
    "fedadagrad": Case(
        "server.kind=fedadagrad server.lr_decay=0.9 client.epochs=null client.steps=3 "
        "client.schedule.kind=constant client.schedule.warmup_steps=2 partition.kind=by_column "
        "partition.column=author partition.min_size=4 data.train_examples=400"
    ),
    "fedpeptao": Case(
        "rounds=3 server.kind=fedpeptao server.gradient=pseudo server.base=previous "
        "server.coupling=independent server.momentum_form=control_in_gradient server.debias=true "
        "server.control_form=displacement server.control_timing=before server.control_mean=weights "
        "client.correction=preconditioner layers.choose=score layers.score=cosine layers.share=0.5"
    ),
    "fedpeptao, chained": Case(
        "rounds=3 server.kind=fedpeptao server.gradient=difference server.base=average "
        "server.momentum_form=control_in_velocity server.debias=false server.control_form=scaffold "
        "server.control_timing=after server.control_mean=steps server.coupling=chained server.lr=0.05 "
        "server.momentum=0.9 client.correction=control"
    ),
    "fedpeptao, clean momentum": Case(
        "rounds=3 server.kind=fedpeptao server.gradient=difference server.base=average "
        "server.momentum_form=clean server.debias=true server.control_form=scaffold "
        "server.control_timing=after server.control_mean=steps server.coupling=independent "
        "client.correction=auto"
    ),
    "fedpeptao, no control": Case(
        "server.kind=fedpeptao server.control=false client.correction=proximal prompt.dropout=0.2"
    ),
    "fedpeptao_published": Case(
        "rounds=3 server.kind=fedpeptao_published layers.choose=score layers.share=0.5 "
        "layers.unselected=local layers.score_last=false layers.score_padding=keep "
        "model.head.loss=vocabulary prompt.position_offset=paper prompt.dropout=0.1 client.dropout=true "
        "client.fuse=off client.optimizer.kind=adamw_published client.optimizer.moments=keep "
        "client.schedule.kind=linear client.schedule.total_steps=all_data"
    ),
    # -- tuner.kind ----------------------------------------------------------------------------------------------------
    "lora": Case(
        f"{STATEFUL} tuner.kind=lora prompt= tuner.rank=2 tuner.scaling=standard tuner.train=both tuner.exchange=both "
        "client.correction=preconditioner",
        stop_after=2,
    ),
    "rslora, GPT-2": Case(
        "server.kind=fedavg tuner.kind=lora prompt= tuner.rank=3 tuner.scaling=rslora layers.choose=top "
        "layers.share=0.5 model.path={model:gpt2} model.head.kind=classifier"
    ),
    "ia3": Case(
        f"{STATEFUL} tuner.kind=ia3 prompt= tuner.targets=[key,intermediate.dense,output.dense] "
        "tuner.feedforward_targets=[output.dense] client.correction=preconditioner",
        stop_after=2,
    ),
    "FFA-LoRA, personal layers": Case(
        "server.kind=fedpeptao tuner.kind=lora prompt= tuner.rank=2 tuner.train=b layers.choose=top layers.share=0.5 "
        "layers.unselected=local"
    ),
    "lora, B frozen": Case("server.kind=fedavg tuner.kind=lora prompt= tuner.rank=2 tuner.train=a"),
    "RoLoRA": Case(
        "rounds=3 server.kind=fedavgm tuner.kind=lora prompt= tuner.rank=2 tuner.train=alternate", stop_after=2
    ),
    "FedSA-LoRA": Case(
        "rounds=3 server.kind=fedavg tuner.kind=lora prompt= tuner.rank=2 tuner.exchange=a model.head.kind=classifier",
        stop_after=2,
    ),
    "FedEx-LoRA": Case(
        "rounds=3 server.kind=fedavg tuner.kind=lora prompt= tuner.rank=2 tuner.exact=true layers.choose=top layers.share=0.5",
        stop_after=2,
    ),
    "lora, B travels": Case("server.kind=scaffold tuner.kind=lora prompt= tuner.rank=2 tuner.exchange=b"),
    "projected prefix": Case(
        "rounds=3 server.kind=fedpeptao tuner.kind=projected_prefix prompt= layers= tuner.length=3 tuner.bottleneck=4",
        stop_after=2,
    ),
    "soft prompt": Case(
        "rounds=3 server.kind=fedpeptao tuner.kind=soft_prompt prompt= layers= tuner.length=3 tuner.start=label_words",
        stop_after=2,
    ),
    "soft prompt from the vocabulary": Case(
        "server.kind=fedavg tuner.kind=soft_prompt prompt= layers= tuner.length=3 tuner.start=vocabulary"
    ),
    "without gradients": Case(
        "rounds=3 server.kind=fedbpt client.optimizer.kind=cma_es client.optimizer.population=6 tuner.kind=soft_prompt prompt= "
        "layers= tuner.length=3 tuner.projection=9",
        stop_after=2,
    ),
    "late prompt": Case(
        "rounds=3 server.kind=fedavg tuner.kind=late_prompt prompt= layers= tuner.length=3 tuner.generator=mppg "
        "model.head.kind=classifier",
        stop_after=2,
    ),
    "late prompt of means": Case(
        "server.kind=fedavg tuner.kind=late_prompt prompt= layers= tuner.length=3 tuner.generator=appg tuner.depth=1"
    ),
    "late prompt of one token": Case(
        "server.kind=fedavg tuner.kind=late_prompt prompt= layers= tuner.length=3 tuner.generator=npg"
    ),
    "late prompt itself": Case(
        "server.kind=scaffold tuner.kind=late_prompt prompt= layers= tuner.length=3 tuner.generator=none tuner.start=random"
    ),
    "generated prompt": Case(
        "rounds=3 server.kind=fedavg tuner.kind=generated_prompt prompt= layers= tuner.length=3 tuner.terms=4",
        stop_after=2,
    ),
    "prompt mixture": Case(
        "rounds=3 server.kind=fedavg tuner.kind=prompt_mixture prompt= layers= tuner.length=3 tuner.bottleneck=5",
        stop_after=2,
    ),
    "adapter": Case(
        f"{STATEFUL} tuner.kind=adapter prompt= tuner.bottleneck=3 tuner.layer_norms=true client.correction=preconditioner",
        stop_after=2,
    ),
    # -- server.aggregation, attack.kind -------------------------------------------------------------------------------
    "median": Case(
        "server.kind=fedavg server.aggregation=median attack.kind=label_flip attack.clients=3 client.correction=none"
    ),
    "trimmed_mean": Case(
        "server.kind=fedavgm server.aggregation=trimmed_mean server.trim_share=0.25 "
        "attack.kind=sign_flip attack.scale=3.0 attack.clients=3 client.correction=none"
    ),
    "norm_clipping": Case(
        "server.kind=scaffold server.aggregation=norm_clipping server.clip_norm=median "
        "attack.kind=noise attack.std=0.5 attack.clients=[0,3,6]"
    ),
    "norm_clipping to a number": Case("server.kind=fedprox server.aggregation=norm_clipping server.clip_norm=0.5"),
    "multi_krum": Case(
        "server.kind=fedpeptao server.aggregation=multi_krum client.correction=control "
        "attack.kind=sign_flip attack.clients=2"
    ),
    "krum": Case("server.kind=fedavg server.aggregation=multi_krum server.assumed_attackers=0 server.kept_clients=1"),
    # -- compression ---------------------------------------------------------------------------------------------------
    "compressed integers": Case(
        "rounds=3 compression.up.kind=int8 compression.down.kind=int4 compression.lossless=zstd "
        "compression.down.block=layer"
    ),
    "compressed halves": Case(
        "compression.up.kind=bfloat16 compression.down.kind=float16 client.optimizer.weight_decay=0.0"
    ),
    "compressed to signs": Case(
        "rounds=3 server.kind=scaffold compression.up.kind=sign compression.down.kind=none compression.lossless=none"
    ),
    "the largest entries": Case("rounds=3 server.kind=fedadam compression.up.kind=top_k compression.down.kind=sign"),
    "random entries": Case(
        "rounds=4 server.kind=feddyn compression.up.kind=random_k compression.up.share=0.3 compression.down.kind=top_k",
        stop_after=2,
    ),
    "random entries, forgetful": Case(
        "server.kind=fedavg compression.up.kind=random_k compression.error_feedback=false compression.down.kind=random_k"
    ),
    "signs down, floats up": Case(
        "server.kind=fedavg compression.up.kind=float16 compression.down.kind=bfloat16 layers.choose=top layers.share=0.5"
    ),
    "four bits up, eight down": Case(
        "server.kind=fedprox compression.up.kind=int4 compression.up.block=layer compression.down.kind=int8 "
        "compression.error_feedback=true"
    ),
    # -- layers --------------------------------------------------------------------------------------------------------
    "share by density": Case(
        "server.kind=fedavg layers.choose=score layers.score=naswot layers.score_clients=4 layers.share_rule=density "
        "layers.spectrum.weighting=uniform layers.spectrum.warmup_rounds=1 "
        "layers.spectrum.lanczos_steps=6",
        share=True,
    ),
    "share by eigengap": Case(
        "server.kind=fedavg layers.choose=top layers.share_rule=eigengap "
        "layers.spectrum.weighting=examples layers.spectrum.directions=1 layers.spectrum.clients=3 "
        "layers.spectrum.warmup_rounds=1 layers.spectrum.lanczos_steps=6",
        share=True,
    ),
    "layers by l1 score": Case(
        "rounds=1 server.kind=fedavg layers.choose=score layers.score=l1 layers.share=0.5 layers.score_padding=zero"
    ),
    "layers by l2 score": Case(
        "server.kind=fedavg layers.choose=score layers.score=l2 layers.share_rule=fixed "
        "layers.share=0.3 layers.score_padding=keep "
        "model.trunk_cache.dtype=float32"
    ),
    "bottom layers, RoBERTa": Case(
        "server.kind=fedavg layers.choose=bottom layers.share=0.5 layers.unselected=none "
        "model.path={model:roberta} model.head.kind=classifier model.head.pooling=mean"
    ),
    "random layers, LLaMA": Case(
        "server.kind=fedpeptao layers.choose=random layers.share=0.5 layers.unselected=local "
        "model.path={model:llama} model.head.kind=classifier model.head.pooling=last"
    ),
    "fixed layers, GPT-2": Case(
        "server.kind=fedadam layers.choose=fixed layers.fixed=[1] model.path={model:gpt2} "
        "model.head.kind=verbalizer model.head.loss=labels model.trunk_cache.dtype=off "
        "prompt.position_offset=none"
    ),
    # -- families, heads, number formats -------------------------------------------------------------------------------
    "BERT": Case(
        "server.kind=fedavg model.path={model:bert} model.head.kind=classifier model.head.pooling=first "
        "model.attention=eager"
    ),
    "responses": Case(
        "server.kind=fedavg model.path={model:llama} model.head.kind=generation data.task=questions partition.kind=iid "
        "tuner.kind=lora prompt= tuner.rank=2 client.optimizer.kind=sgd client.optimizer.lr=0.2"
    ),
    "responses, prefix above a frozen layer": Case(
        "server.kind=fedavg model.path={model:qwen3} model.head.kind=generation data.task=writing partition.kind=iid "
        "layers.choose=fixed layers.fixed=[1,2] client.optimizer.kind=sgd client.optimizer.lr=0.2"
    ),
    "all answers of dialogues, LoRA": Case(
        "server.kind=fedavg model.path={model:llama-chat} model.head.kind=generation partition.kind=iid "
        f"tuner.kind=lora prompt= tuner.rank=2 client.optimizer.kind=sgd client.optimizer.lr=0.2 {_TALKS}"
    ),
    "Qwen3": Case("server.kind=fedavg model.path={model:qwen3} model.attention=sdpa prompt.position_offset=paper"),
    "LLaMA, the classes of topics": Case(
        "server.kind=fedavg model.path={model:llama} model.head.kind=classifier model.head.pooling=auto "
        "data.task=topics model.shared_beginnings=off"
    ),
    "beginnings that topics share, LLaMA": Case(
        "server.kind=fedavg model.path={model:llama} model.head.kind=classifier model.shared_beginnings=auto "
        "tuner.kind=lora prompt= tuner.rank=2 data.task=topics"
    ),
    "words of several tokens, RoBERTa": Case(
        "server.kind=fedavg layers.choose=top layers.share=0.5 layers.unselected=none model.path={model:roberta} "
        f"model.head.calibration=empty_text {_WORDY}"
    ),
    "words of several tokens, masks filled one by one": Case(
        "server.kind=fedavg layers.choose=top layers.share=0.5 layers.unselected=none model.path={model:roberta} "
        f"model.head.calibration=empty_text model.head.decoding=stepwise {_WORDY} evaluation.select_on=holdout",
        losses=True,
    ),
    "words of several tokens, LLaMA": Case(
        "server.kind=fedavg layers.choose=top layers.share=0.5 layers.unselected=none model.path={model:llama} "
        f"model.head.calibration=none model.head.decoding=parallel model.head.loss=vocabulary {_WORDY} "
        "data.task.word_end=.<eos>"
    ),
    "int8 weights and layers run twice, LLaMA": Case(
        "server.kind=fedavg model.path={model:llama} tuner.kind=lora prompt= tuner.rank=2 model.quantize=int8 "
        "model.gradient_checkpointing=true"
    ),
    "int4 weights, GPT-2": Case(
        "server.kind=fedavg model.path={model:gpt2} model.head.kind=classifier model.quantize=int4"
    ),
    "float64, two blocks": Case(
        "server.kind=fedpeptao model.dtype=float64 group_size=1 client.fuse=off partition.clients=24 "
        "sampling.clients_per_round=20",
        losses=True,
    ),
    "float64, control": Case(
        "rounds=3 server.kind=scaffold server.aggregation=mean model.dtype=float64 group_size=4 client.fuse=3",
        losses=True,
    ),
    # -- who takes part, where a run starts ----------------------------------------------------------------------------
    "dropouts and stragglers": Case(
        "rounds=3 server.kind=fedavgm sampling.kind=uniform sampling.dropout=0.3 "
        "sampling.delay.seconds_per_example=1.0 sampling.delay.deadline_seconds=12.0 "
        "partition.kind=dirichlet_label partition.alpha=0.3"
    ),
    "private": Case(f"rounds=3 {PRIVATE} sampling.draw=fixed privacy.noise=clients privacy.adaptive.bit_noise=2.0"),
    "private, poisson": Case(
        f"rounds=3 seed=2 {PRIVATE} sampling.draw=poisson sampling.clients_per_round=1 privacy.noise=server"
    ),
    "buffered, resumed with clients under way": Case(
        "rounds=6 server.kind=fedavgm sampling.clients_per_round= buffer.size=2 buffer.concurrency=5 "
        "buffer.staleness_exponent=0.5 buffer.max_staleness=3 sampling.delay.seconds_per_example=1.0 "
        "sampling.delay.device_spread=1.5 client.optimizer.moments=keep",
        stop_after=3,
    ),
    "phones, tiers": Case(
        "rounds=3 server.kind=fedavg sampling.kind=tiers sampling.tiers=1 layers.choose=top layers.share=0.5 "
        "world.devices.availability.kind=markov world.over_selection=0.6 world.deadline_seconds=5",
        stop_after=2,
    ),
    "by day, oort": Case(
        "rounds=3 server.kind=scaffold sampling.kind=oort sampling.clients_per_round=3 "
        "world.devices.availability.kind=diurnal world.devices.availability.share=0.3",
        stop_after=2,
    ),
    "always in reach, power of choice": Case(
        "rounds=3 server.kind=fedavg sampling.kind=power_of_choice sampling.candidates=6 sampling.clients_per_round=3 "
        "world.devices.availability.kind=always world.devices.slow_share=0.25 world.over_selection=0.4",
        stop_after=2,
    ),
    "another seed": Case("server.kind=fedpeptao seed=7 partition.kind=dirichlet_label"),
    "from a prompt": Case("server.kind=fedavg prompt.start_from={run:fedavg}"),
    "from a LoRA run": Case(
        "server.kind=fedavg tuner.kind=lora prompt= tuner.rank=2 tuner.start_from={run:lora} "
        "layers.choose=bottom layers.share=0.75"
    ),
    "straight": Case(STATEFUL),
    "resumed": Case(STATEFUL, stop_after=2),
}
