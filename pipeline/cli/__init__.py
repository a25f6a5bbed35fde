"""The commands: `visionbake COMMAND`.

commands   their list; errors to exit codes
console    what they share: signals, printing
reporter   how a run goes, while it goes
requested  the configuration that a command's words stand for
run, plan, init, config, status, stats, verify, encode, bench, completion   one each
compare    what is stored against the reference, for `verify --sample`
compare_clips  a clip as the reference's own processor has it
plan_cases  the budgets, rates and models that one plan compares
verdict    what an estimate comes to, in sentences
words      the names of its numbers, and how they are written
plan_table  the table of its numbers
calibrate  what one device of this machine encodes in a second
report/    the pages of `plan --html` and `stats --html`
"""

from .commands import main, run_command

__all__ = ["main", "run_command"]
