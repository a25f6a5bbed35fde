"""Tower: packed images in, merged vision tokens out.

families/     what each family has of its own: names, spellings, shapes, activation
config        a checkpoint's dimensions and preprocessing, from its JSON files alone
geometry      a checkpoint's factor and budgets of pixels
tensors       which files hold what the tower needs, under whose names, whole
hub_download  a checkpoint's files from the Hub, into the cache of its tools
checkpoint    a resolved checkpoint: its configuration, its tensors, their digest
published     a configuration as the checkpoints of its type spell it
random_tower  checkpoints of seeded random weights in the real format
positions     learned positions, interpolated
pack_plan     what the grids of a pack decide: order, rotary positions, segments
linear        the matrix products, and who computes them
attention     attention within segments
block         one block's weights, and its two halves around attention
merger        the residual stream to tokens, one merger for each stream of the output
fused         what lies between matrix products on a GPU, as Triton kernels
device        which device a process takes, and its name
tower         the forward pass
reference     the reference implementation, for those who compare with it

To add a family: docs/architecture.md, "Adding a family".
"""
