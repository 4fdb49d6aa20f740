"""Runs a sweep: its members take turns, each a whole fit of its own."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence

from clt_lightning.callbacks import random_state
from clt_lightning.callbacks.save_config import SaveConfig
from clt_lightning.cli.config_cli import read_words
from clt_lightning.cli.sweep.member import MemberCLI, Together
from clt_lightning.cli.sweep.members import Member, read_members
from clt_lightning.cli.sweep.outcome import Outcome, lines, remember, write
from clt_lightning.cli.sweep.words import without
from clt_lightning.core.errors import UserError
from clt_lightning.core.say import say
from clt_lightning.runs.folder import shown
from clt_lightning.runs.requeue import requeue, slurm_job
from clt_lightning.runs.signals import Stopped
from clt_lightning.runs.turns import GivenUp, Turns


def run_sweep(words: list[str], path: str) -> None:
    """Trains all members.

    Args:
        words: `fit` and its options, without `--sweep`.
        path: the file that says which members there are.

    Raises:
        UserError: the file, or the settings of a member, cannot be: nothing is trained; or a member has failed, when
            the others are done.
        SystemExit: 75 or 130 after a signal, when all members have written their checkpoints.
    """
    members = read_members(path)
    outcomes = [Outcome(member.name, member.settings) for member in members]
    together = Together(Turns(random_state.collect, random_state.restore), len(members))

    def whole(member: Member, outcome: Outcome) -> None:
        try:
            own, _, trusted = read_words([*words, *member.words()])
            MemberCLI(
                *(member, outcome, together, own, trusted),
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
            )
        except Exception as error:
            if outcome.begun:
                raise
            together.turns.give_up()  # nothing is trained where one of them cannot be
            if isinstance(error, UserError):
                raise UserError(f"{member.where}, {member.name}: {error}") from error
            raise
        finally:
            together.packets.without_one()

    say(f"sweep: {len(members)} runs on one forward of the backbone: {', '.join(m.name for m in members)}")
    errors = together.turns.run([lambda m=m, o=o: whole(m, o) for m, o in zip(members, outcomes)])  # type: ignore[misc]
    for outcome, error in zip(outcomes, errors):
        outcome.error = error
    together.close()
    if any(outcome.begun for outcome in outcomes):
        _tell(outcomes, together, path)
    _end(words, path, outcomes, together)


def _tell(outcomes: Sequence[Outcome], together: Together, path: str) -> None:
    folder = next(o.folder for o in outcomes if o.folder is not None).parent.parent
    remember(folder, outcomes)
    asked, run = together.forwards.asked, together.forwards.run
    say("\n" + "\n".join(lines(outcomes)))
    say(f"{run:,} forwards of the backbone were run for {asked:,} that the runs needed")
    written = write(folder, outcomes, path, (asked, run))
    say(f"wrote {', '.join(shown(file) for file in written)}")


def _end(words: list[str], path: str, outcomes: Sequence[Outcome], together: Together) -> None:
    """Raises what the command is to end with."""
    if together.flag is not None:
        together.flag.restore()
    stopped = [o.error for o in outcomes if isinstance(o.error, Stopped)]
    if stopped:
        again = shlex.join([*without(words, "--ckpt_path"), "--sweep", path, "--ckpt_path", "last"])
        print(
            f"stopped by {stopped[0].signal} at step {stopped[0].step}; the state of each run is in its checkpoints/. "
            f"Go on with:\n  python -m clt_lightning {again}",
            file=sys.stderr,
            flush=True,
        )
        if stopped[0].signal != "SIGINT" and together.requeues and (job := slurm_job()):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm ends the job as soon as it has requeued it
            requeue(job)
        raise SystemExit(stopped[0].exit_code)
    failed = [o for o in outcomes if o.error is not None and not isinstance(o.error, GivenUp)]
    for outcome in failed:
        if not isinstance(outcome.error, UserError):
            assert outcome.error is not None
            raise outcome.error  # a mistake of ours keeps its traceback
    if failed and not failed[0].begun:
        assert failed[0].error is not None
        raise failed[0].error
    if failed:
        told = "\n".join(f"  {o.name}: {o.error}" for o in failed)
        raise UserError(f"{len(failed)} of {len(outcomes)} runs of the sweep have failed, the others are done:\n{told}")
