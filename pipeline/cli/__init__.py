"""The commands: `visionbake COMMAND`.

commands   their list; errors to exit codes
console    what they share: signals, printing
reporter   how a run goes, while it goes
requested  the configuration that a command's words stand for
run, plan, init, config, status, stats, verify, encode, bench, completion   one each
compare    what is stored against the reference, for `verify --sample`
compare_clips  a clip as the reference's own processor has it
verdict    what an estimate comes to, in sentences
calibrate  what one device of this machine encodes in a second
report/    the pages of `plan --html` and `stats --html`
"""

from .commands import main, run_command

__all__ = ["main", "run_command"]
