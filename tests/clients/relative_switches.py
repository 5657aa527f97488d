"""Switches of a DeBERTa's config.json, whose attention takes no prefix; test_relative_attention.py runs them."""

RELATIVE: dict[str, dict[str, object]] = {
    "as DeBERTa-v3": {},
    "both maps of distances": {"share_att_key": False},
    "what a query finds": {"pos_att_type": ["c2p"]},
    "what a key finds": {"pos_att_type": ["p2c"]},
    "written as one word": {"pos_att_type": "p2c|c2p"},
    "maps of their own, one kind": {"pos_att_type": ["p2c"], "share_att_key": False},
    "no distances": {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
    "distances that no score reads": {"pos_att_type": []},
    "each distance by itself": {"position_buckets": -1},
    "few distances": {"position_buckets": -1, "max_relative_positions": 5},
    "distances in buckets up to few": {"position_buckets": 8, "max_relative_positions": 12},
    "distances as they are": {"norm_rel_ebd": "none"},
    "learned positions, too": {"position_biased_input": True},
    "token types": {"type_vocab_size": 2},
    "smaller word embeddings": {"embedding_size": 16},
    "size of a head": {"attention_head_size": 8},
    "no convolution": {"conv_kernel_size": 0},
}
