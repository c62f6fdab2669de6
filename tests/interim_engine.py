"""Until the native engine is here: an engine over `QwenPolicy.rollout`, one question at a time."""

from dataclasses import dataclass

from vrts.models.engine import Engine, Result
from vrts.models.policy import Prompt, Prompts
from vrts.models.qwen import QwenPolicy
from vrts.types import Completion


@dataclass(frozen=True, slots=True)
class RolloutPrompt(Prompt):
    prompts: Prompts

    @property
    def num_tokens(self):
        return len(self.prompts.encoded[0].input_ids)


class RolloutEngine(Engine):
    def __init__(self, policy):
        self.policy, self.queue = policy, []

    def attach(self, policy):
        pass

    sync = attach

    def encode(self, samples, known=None):
        before = known.prompts if known is not None else None
        return [RolloutPrompt(s.question, self.policy.encode([s], 1, before)) for s in samples]

    def has_room(self):
        return len(self.queue) < 4

    def add(self, request):
        self.queue.append(request)

    @property
    def num_pending(self):
        return len(self.queue)

    def cancel(self):
        self.queue = []

    def release(self):
        assert not self.queue

    def step(self):
        if not self.queue:
            return []
        request = self.queue.pop(0)
        stop = request.should_stop
        out = self.policy.rollout(
            request.prompt.prompts, request.sampling, request.seeds, request.max_new_tokens,
            None if stop is None else lambda b, texts, means: stop(texts, means),
        )  # fmt: skip
        gone = [False] * len(out.texts) if out.abandoned is None else out.abandoned.tolist()
        return [Result(request, tuple(
            Completion(out.texts[i], n, request.max_new_tokens, bool(out.finished[i]),
                       out.completion_ids[i, :n].cpu(), out.logprobs[i, :n].cpu(), gone[i])
            for i, n in enumerate(out.lengths.tolist())))]  # fmt: skip


if "default_engine" not in vars(QwenPolicy):
    QwenPolicy.default_engine = lambda self: RolloutEngine(self)
