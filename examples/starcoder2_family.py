"""A model family: StarCoder2, a decoder for code, in one row.

    fedsim run configs/quickstart.yaml --load examples/starcoder2_family.py model.path=FOLDER

FOLDER holds a model whose config.json says ``"model_type": "starcoder2"``. The row names what differs from a LLaMA; all that a
family can differ in is in :class:`Family`. ``tests/clients/test_own_family.py`` holds it to what the families of fedsim keep.
"""

import fedsim
from clients.backbone.families import Family

fedsim.register("family", "starcoder2")(
    Family(
        "starcoder2",
        "Starcoder2",  # its classes in transformers: Starcoder2Config, Starcoder2Model, Starcoder2ForCausalLM
        "causal_lm",
        ia3_targets=("q_proj", "v_proj", "mlp.c_proj"),
        ia3_feedforward=("mlp.c_proj",),
        sublayer_outputs=("self_attn.o_proj", "mlp.c_proj"),
        window="all",  # config.json's sliding_window is that of all layers
    )
)
