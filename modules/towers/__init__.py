"""The two towers: what each vector is made of, and the losses that fit them."""
