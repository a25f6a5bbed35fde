"""Tower: packed images in, merged vision tokens out.

config        a checkpoint's dimensions and preprocessing, from its JSON files alone
geometry      a checkpoint's factor and budgets of pixels
checkpoint    its tensors, whatever files they lie in
random_tower  checkpoints of seeded random weights in the real format
pack_plan     what the grids of a pack decide: order, rotary positions, segments
linear        the matrix products, and who computes them
attention     attention within segments
block         one block's weights, and its two halves around attention
fused         what lies between matrix products on a GPU, as Triton kernels
device        which device a process takes, and its name
tower         the forward pass
reference     the reference implementation, for those who compare with it

To add a family: its names and sizes in `config`, its norm, MLP and positions in `block` and `pack_plan`, what its
forward has besides in `tower`, a size of random weights in `random_tower`, and its comparison with `reference` in the
tests.
"""
