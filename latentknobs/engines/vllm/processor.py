"""The logits processor of vLLM, for both of its model runners.

Runner V1 calls it after penalties and bans, for requests whose temperature is not 0; runner V2 after penalties and bans, before
temperature. Requests with a policy have temperature 1 and no truncation, so what vLLM does afterwards changes nothing, and its
own draw finds the marked token. It is named by flag (`--logits-processors`): loaded by entry point, V1 would drop it silently
beside drafts, instead of refusing to start.
"""

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as V1
from vllm.v1.sample.logits_processor import MoveDirectionality
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2

from latentknobs.engines.vllm import policies
from latentknobs.engines.vllm.decode import Row, decode
from latentknobs.engines.vllm.limits import check_config
from latentknobs.engines.vllm.progress import Chance, Progress, Responses
from latentknobs.engines.vllm.request import Request, read_request
from latentknobs.engines.vllm.tap import TAP
from latentknobs.engines.vllm.versions import check_version

ASIDE = 4  # responses that may be set aside, in batches


class PolicyProcessor(V1, V2):
    """Decodes requests that name a policy; leaves all others alone."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuses a request at admission, before it costs anything: HTTP 400."""
        read_request(sampling_params, policies.known())

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        check_version()
        check_config(vllm_config)
        self.states = rest[0] if len(rest) == 1 else None  # of runner V2
        self.device = rest[0] if self.states is None else self.states.device
        self.responses = Responses(
            Chance(f"{vllm_config.parallel_config.data_parallel_index} {vllm_config.instance_id}"),  # vLLM resets the rank
            ASIDE * vllm_config.scheduler_config.max_num_seqs,
        )
        self.rows: dict[int, Progress] = {}  # by row (V1) or slot (V2)
        self.waiting: dict[int, Request] = {}  # by slot; their ids are not there yet
        TAP.is_wanted = lambda: bool(self.rows or self.waiting)
        TAP.is_edited = lambda: (
            any(p.request.is_edited for p in self.rows.values()) or any(request.is_edited for request in self.waiting.values())
        )
        self.load(vllm_config)

    def load(self, vllm_config: Any) -> None:
        """Registers policies at start; none here."""

    def is_argmax_invariant(self) -> bool:
        """What V1 calls the place after penalties."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """V1: requests come, move and go."""
        if batch_update is None:
            return
        filled = [to for _, to, how in batch_update.moved if how == MoveDirectionality.UNIDIRECTIONAL]
        for index in {*batch_update.removed, *filled, *(added[0] for added in batch_update.added)}:
            if index in self.rows:  # vacated: vLLM lists as removed only what it has not filled again
                self.responses.set_aside(self.rows[index])
        process_dict_updates(self.rows, batch_update, self._admit)

    def _admit(self, params: Any, prompt: list[int] | None, outputs: list[int]) -> Progress | None:
        request = read_request(params)
        if request is None:
            return None
        policy = policies.find(request.policy, request.pick)
        progress = self.responses.begin(request, policy, list(prompt or ()), outputs)
        progress.outputs = outputs
        return progress

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request gets a slot; whatever had it is finished or set aside."""
        if (old := self.rows.pop(req_idx, None)) is not None:
            self.responses.set_aside(old)
        self.waiting.pop(req_idx, None)
        if (request := read_request(sampling_params)) is not None:
            policies.find(request.policy, request.pick)
            self.waiting[req_idx] = request
        return request is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Draws the tokens of this step and marks them, in place."""
        if not self.rows and not self.waiting:
            return logits
        rows = self._rows_v1(len(logits)) if ctx is None else self._rows_v2(ctx)
        if rows:
            hidden_ND, raw_NV = TAP.take(len(logits))
            decode(rows, logits, hidden_ND, raw_NV)
        return logits

    def _rows_v1(self, count: int) -> list[Row]:
        rows = []
        for index, progress in sorted(self.rows.items()):
            outputs = progress.outputs
            if index < count:
                progress.move_to(len(outputs), outputs[-1] if outputs else -1)
                rows.append(Row(index, progress))
        return rows

    def _rows_v2(self, ctx: Any) -> list[Row]:
        assert self.states is not None
        lengths, newest = ctx.seq_lens_upper_bound_np.tolist(), ctx.input_ids.tolist()
        rows = []
        for index, slot in enumerate(ctx.idx_mapping_np.tolist()):
            if slot in self.waiting and lengths[index] >= int(self.states.prefill_len.np[slot]):
                self.rows[slot] = self._arrived(slot, self.waiting.pop(slot))
            if (progress := self.rows.get(slot)) is not None:
                progress.move_to(lengths[index] - len(progress.prompt), newest[index])
                rows.append(Row(index, progress))
        return rows

    def _arrived(self, slot: int, request: Request) -> Progress:
        """The response of a request whose ids have all been read."""
        assert self.states is not None
        first, read = int(self.states.prompt_len.np[slot]), int(self.states.prefill_len.np[slot])
        ids = self.states.all_token_ids.gpu[slot, :read].tolist()
        if read > first:  # it comes back, and the slot that it had may not have a new owner yet
            for progress in self.rows.values():
                if progress.request == request and progress.is_before(ids[first:]):
                    self.responses.set_aside(progress)
        return self.responses.begin(request, policies.find(request.policy, request.pick), ids[:first], ids[first:])
