"""What all tests of trainings in the graph share: folders of their own, and a model that must be as it was."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs and files of a test go to its own folder; nobody pressed Cancel, before or after."""
    import comfy.model_management
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    comfy.model_management.interrupt_current_processing(False)
    yield tmp_path
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def runs(outputs: Path) -> Path:
    """Where the runs of a test lie."""
    return outputs / "output" / "bestiary"


@pytest.fixture
def cancelled_in_step_three(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """`cancelled_in_step_three(train)`: the user presses Cancel in the third step, and the next graph may run."""

    def run(train: Callable[[], object]) -> None:
        import comfy.model_management
        from bestiary.nodes.training.training_progress import TrainingProgress

        step = TrainingProgress.step

        def cancel(self: TrainingProgress, done: int, total: int) -> None:
            if done == 3:
                comfy.model_management.interrupt_current_processing(True)
            step(self, done, total)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingProgress, "step", cancel)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                train()
        assert not comfy.model_management.processing_interrupted()

    return run


@pytest.fixture
def command_line_losses(tmp_path: Path) -> Callable[[Callable[[], object]], list[float]]:
    """`command_line_losses(set_up)` -> losses of the standalone trainer's loop over the training that `set_up()` makes."""

    def losses(set_up: Callable[[], object]) -> list[float]:
        from bestiary.trainer.learning.run.fit import fit
        from bestiary.trainer.learning.run.run_folder import RunFolder
        from bestiary.trainer.learning.run.run_settings import loop_settings

        run = RunFolder.create(tmp_path / "standalone")
        with torch.random.fork_rng():
            made = set_up()
            loop = loop_settings(made.settings.optimizer, made.settings.run, made.denoiser)
            fit(made.objective, made.groups, made.batches, loop, run)
        return [record["loss"] for record in run.read_log()]

    return losses


@pytest.fixture
def weights_of() -> Callable[[object], dict[str, torch.Tensor]]:
    """`weights_of(loaded)` -> copies of all weights of MODEL, CLIP and VAE."""
    return _weights


@pytest.fixture
def untouched() -> Iterator[Callable[[object], Callable[[], None]]]:
    """`check = untouched(loaded)`: at `check()`, and at the end of the test, the model samples as now and holds the same weights."""
    noted: list[Callable[[], None]] = []

    def note(loaded: object) -> Callable[[], None]:
        noted.append(partial(_assert_untouched, loaded, _sampled(loaded), _weights(loaded), torch.get_rng_state()))
        return noted[-1]

    yield note
    assert noted
    for check in noted:
        check()


def _assert_untouched(
    loaded: object, sampled: torch.Tensor, weights: dict[str, torch.Tensor], random_state: torch.Tensor
) -> None:
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(_sampled(loaded), sampled)
    now = _weights(loaded)
    assert now.keys() == weights.keys() and all(torch.equal(now[name], weights[name]) for name in weights)
    for module in (loaded.model.model, loaded.clip.cond_stage_model):
        assert not any("forward" in part.__dict__ for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


def _sampled(loaded: object) -> torch.Tensor:
    """A latent of two sampling steps with the graph's own objects."""
    import comfy.sample

    with torch.inference_mode():
        tokens = loaded.clip.tokenize("a red bird")
        positive = loaded.clip.encode_from_tokens_scheduled(tokens)
        channels = loaded.model.model.latent_format.latent_channels
        latent = torch.zeros(1, channels, 16, 16)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        return comfy.sample.sample(
            loaded.model, noise, 2, 2.0, "euler", "normal", positive, positive, latent, disable_pbar=True, seed=0
        ).clone()


def _weights(loaded: object) -> dict[str, torch.Tensor]:
    modules = {"model": loaded.model.model, "clip": loaded.clip.cond_stage_model, "vae": loaded.vae.first_stage_model}
    return {
        f"{kind}.{name}": tensor.detach().clone()
        for kind, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.fixture
def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], str]:
    """`out_of_memory(train)` -> the message of a training whose network finds no memory."""

    def message(train: Callable[[], object]) -> str:
        from bestiary.concepts.errors import BestiaryError
        from bestiary.nodes.denoiser.comfy_network import ComfyNetwork

        def fail(self: ComfyNetwork, *inputs: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        with monkeypatch.context() as patch:
            patch.setattr(ComfyNetwork, "predict", fail)
            with pytest.raises(BestiaryError, match="out of memory in training") as raised:
                train()
        return str(raised.value)

    return message


@pytest.fixture
def log_of() -> Callable[[object, str], list[dict]]:
    """`log_of(server, run)` -> lines of the log of a run, none before it began."""
    return _log_of


def _log_of(server: object, run: str) -> list[dict]:
    path = server.folder / "output" / "bestiary" / run / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cancelled_in_training() -> Callable[[object, dict, str], int]:
    """`cancelled_in_training(server, graph, run)` -> steps of the run when Cancel ended it, 2 or more."""

    def cancelled(server: object, graph: dict, run: str) -> int:
        prompt_id = server.submit(graph)
        until = time.monotonic() + 120
        while time.monotonic() < until and len(_log_of(server, run)) < 2:
            time.sleep(0.05)
        server.post("/interrupt")
        entry = server.wait(prompt_id)
        assert any(name == "execution_interrupted" for name, _ in entry["status"]["messages"])
        return len(_log_of(server, run))

    return cancelled
