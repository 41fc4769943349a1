"""What an expert is: tensors, files, digests, PEFT's format, and its rows in a bank. No torch.

`folder` reads and writes experts, `kind` says what a kind of expert is, `kinds` has a file for
each, `peft_format` has PEFT's folders, and `bank` stacks experts into graph inputs. The half that
acts on a model is `pidep.adapters`. May import `pidep.artifacts`, `pidep.files`, `pidep.plugins`
and `pidep.errors`.
"""

__all__: list[str] = []
