"""How an encoder is executed while tokens leave: attention, packing, and the packed and the masked forward pass."""
