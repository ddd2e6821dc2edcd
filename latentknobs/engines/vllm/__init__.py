"""Decoding with a policy inside unforked vLLM, offline and in its server.

Two plug-ins of vLLM meet here. The tap (`tap.py`) sees hidden states and logits at the LM head; the processor (`processor.py`)
knows the requests. The policy chooses values, and the token is drawn as in every other engine, from uniforms that belong to the
request alone; vLLM's own draw then finds one token that cannot be missed. So a seed fixes a text whatever the batch, chunks or
preemption, and one seed gives one text in two engines. Nothing here imports vLLM before it is used.
"""
