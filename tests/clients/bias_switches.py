"""Switches of a T5's config.json; test_position_bias.py runs them."""

BIASED: dict[str, dict[str, object]] = {
    "as it is": {},
    "one map before the activation": {"feed_forward_proj": "gelu"},
    "two maps before it": {"feed_forward_proj": "gated-silu"},
    "each distance of the texts by itself": {
        "relative_attention_num_buckets": 128,
        "relative_attention_max_distance": 64,
    },
    "as few buckets as can be": {"relative_attention_num_buckets": 4},
    "few distances": {"relative_attention_max_distance": 4},
    "larger heads": {"d_kv": 10},
    "norms with a larger epsilon": {"layer_norm_epsilon": 0.5},
    "more layers": {"num_layers": 4},
}
"""What is followed."""
OF_THE_DECODER: dict[str, object] = {
    "num_decoder_layers": 1,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 3,
    "bos_token_id": 5,
    "pad_token_id": None,
    "is_encoder_decoder": True,
    "is_decoder": False,
    "is_causal": False,
    "use_cache": True,
    "classifier_dropout": 0.3,
    "dropout_rate": 0.5,
    "initializer_factor": 0.5,
}
"""What changes nothing in an encoder that is evaluated."""
