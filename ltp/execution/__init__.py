"""Forward passes of a pruned encoder, packed and masked, with the attention and the packing that they use."""
