"""How experts act on a torch module: sites, mixtures, attaching and folding.

`site` is the one interface and `kinds` has a file for each kind. `places` finds sites,
`forward_facts` looks at a model by running it, `arena` holds the tensors of K experts, and
`mixture` attaches them. May import `pidep.experts`, `pidep.kernels` and `pidep.errors`.
"""

__all__: list[str] = []
