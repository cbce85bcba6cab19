"""Two processes that stay and take one run after another, for their start takes longer than a run."""

import multiprocessing
import os
import socket
import time
import traceback

import lightning.pytorch as pl
import torch


class Probe(pl.Callback):
    """Writes what each rank drew, saw, ended with, and evaluated."""

    def __init__(self):
        self.draws, self.rows = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.draws.append(torch.rand(()).item())

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append(batch["observations"].flatten(1)[:, :3].clone())

    def on_fit_end(self, trainer, module):
        seen = {"draws": self.draws, "rows": torch.cat(self.rows), "weights": module.state_dict()}
        torch.save(seen, f"fit{trainer.global_rank}.pt")

    def on_test_end(self, trainer, module):
        rollout = next(c for c in trainer.callbacks if type(c).__name__ == "Rollout")
        episodes = [(e.seed, e.episode_return) for e in rollout.evaluation.episodes]
        torch.save(episodes, f"test{trainer.global_rank}.pt")


class TwoProcesses:
    """Runs ``diffrl`` with ``ddp`` in two processes, which a run that fails takes down."""

    def __init__(self):
        self._pairs = []

    def run(self, folder, args, timeout=240):
        """Run in a folder; what is printed goes to its rank0.log and rank1.log."""
        if not self._pairs:
            self._start()
        options = ("--trainer.devices=2", "--trainer.strategy=ddp")
        for _, connection in self._pairs:
            connection.send((str(folder), [*map(str, args), *options]))
        deadline = time.monotonic() + timeout
        for _, connection in self._pairs:
            failure = "took too long"
            if connection.poll(max(0.0, deadline - time.monotonic())):
                try:
                    failure = connection.recv()
                except EOFError:
                    failure = "died"
            if failure:
                self.stop()
                logs = [path.read_text()[-3000:] for path in sorted(folder.glob("rank*.log"))]
                raise AssertionError("\n".join([failure, *logs]))

    def stop(self):
        for process, _ in self._pairs:
            process.kill()
            process.join()
        self._pairs = []

    def _start(self):
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in (0, 1):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies ends the wait for it
            self._pairs.append((process, ours))


def _serve(rank, port, connection):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    from diffrl_lightning.cli import main

    while True:
        folder, args = connection.recv()
        os.chdir(folder)
        log = os.open(f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2), os.close(log)
        try:
            main(args)
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send("")
