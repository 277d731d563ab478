"""Names that matter to who reads a command line: variables that are safe to set, programs that start programs.

Every table says what it is for; how they are used is in shell_programs.py. Sources: bash 5.2 manual 5, zsh 5.9
zshparam(1), the manual pages of sudo 1.9, doas 6.8, coreutils 9, findutils 4.9, util-linux 2.38.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Variables that change how a program speaks, not what it does. Every other upper-case name may be one that a program
# or the shell heeds (PATH, LD_PRELOAD, IFS, GIT_SSH_COMMAND, PAGER, HOME, ...), and nobody has a list of those.
SAFE_VARIABLES: Final = frozenset({
    "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "CLICOLOR", "FORCE_COLOR", "CI",
    "DEBIAN_FRONTEND", "NEEDRESTART_MODE", "PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONDONTWRITEBYTECODE",
    "GIT_TERMINAL_PROMPT", "SYSTEMD_COLORS", "GATECAST_INTENT", "GATECAST_RUN",
})  # fmt: skip
_SAFE_PREFIXES: Final = ("LC_", "GATECAST_")

# Lower-case names that zsh gives a meaning: path is PATH, functions[ls]=rm makes a function.
_ZSH_VARIABLES: Final = frozenset({
    "aliases", "argv", "builtins", "cdpath", "chpwd", "commands", "compstate", "dirstack", "fignore", "fpath",
    "functions", "galiases", "histchars", "keymaps", "mailpath", "manpath", "module_path", "modules", "nameddirs",
    "options", "parameters", "path", "patchars", "pipestatus", "precmd", "preexec", "prompt", "psvar", "reswords",
    "saliases", "signals", "status", "termcap", "terminfo", "userdirs", "watch", "widgets", "words",
})  # fmt: skip


def sets_safely(name: str) -> bool:
    """Tell whether a variable can be set without changing what programs do."""
    if name in SAFE_VARIABLES or name.startswith(_SAFE_PREFIXES):
        return True
    if not any(char.islower() for char in name):
        return False
    special = ("dis_", "fish_", "zsh_", "zle_")
    return name not in _ZSH_VARIABLES and not name.startswith(special) and not name.endswith(("_functions", "_proxy"))


# Shells that read what we read.
SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "ksh93", "mksh", "rbash", "yash"})
# Options of these that take a word: bash 6.1, zsh 5.9 (zshmisc), dash(1).
SHELL_WORDS: Final = frozenset({"-o", "+o", "-O", "+O"})
SHELL_FLAGS: Final = frozenset({"--norc", "--noprofile", "--login", "--posix", "--restricted", "--verbose"})

# Programs of another language, and the letters of their options that take a text of it.
INTERPRETERS: Final[Mapping[str, str]] = {
    "python": "c", "python2": "c", "python3": "c", "pypy": "c", "pypy3": "c", "perl": "eEnp", "ruby": "e", "node": "ep",
    "nodejs": "ep", "php": "rBRE", "lua": "e", "luajit": "e", "tclsh": "c", "Rscript": "e", "groovy": "e", "guile": "c",
    "osascript": "e", "elixir": "e", "erl": "e", "julia": "eE", "bun": "e", "fish": "cC", "csh": "c", "tcsh": "c",
    "pwsh": "c", "powershell": "c",
}  # fmt: skip

# Prefixes that are looked through. The options that take a word, as separate word or behind the letter.
OPTION_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "sudo": frozenset({
        "-u", "-g", "-p", "-C", "-D", "-h", "-R", "-r", "-t", "-T", "-U", "--user", "--group", "--prompt", "--chdir",
        "--close-from", "--host", "--chroot", "--role", "--type", "--command-timeout", "--other-user",
    }),
    "doas": frozenset({"-u", "-C"}),
    "env": frozenset({"-u", "-C", "--unset", "--chdir"}),
    "nohup": frozenset(),
    "setsid": frozenset(),
    "nice": frozenset({"-n", "--adjustment"}),
    "ionice": frozenset({"-c", "-n", "--class", "--classdata"}),
    "stdbuf": frozenset({"-i", "-o", "-e", "--input", "--output", "--error"}),
    "timeout": frozenset({"-k", "-s", "--kill-after", "--signal"}),
    "time": frozenset({"-f", "-o", "--format", "--output"}),
    "chrt": frozenset({"-T", "-P", "-D"}),
    "exec": frozenset({"-a"}),
    "command": frozenset(),
    "builtin": frozenset(),
    "noglob": frozenset(),
    "nocorrect": frozenset(),
    "-": frozenset(),
    "xargs": frozenset({
        "-a", "-d", "-E", "-I", "-L", "-n", "-P", "-s", "--arg-file", "--delimiter", "--max-args", "--max-procs",
        "--max-chars", "--process-slot-var",
    }),
}  # fmt: skip
# Words of their own that come before the program.
OPERANDS: Final[Mapping[str, int]] = {"timeout": 1, "chrt": 1}
# Prefixes that take NAME=VALUE words.
ASSIGNING: Final = frozenset({"sudo", "doas", "env"})
# Options that start something else than the words that follow.
REFUSED_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "sudo": frozenset({"-i", "-s", "-e", "-E", "--login", "--shell", "--edit", "--preserve-env"}),
    "doas": frozenset({"-s"}),
    "env": frozenset({"-S", "--split-string"}),
}

# Programs that run what other words, files or their input say, in ways that are not read here.
RUNNERS: Final = frozenset({
    "su", "runuser", "watch", "script", "parallel", "systemd-run", "unshare", "nsenter", "strace", "ltrace", "gdb",
    "setpriv", "capsh", "chroot", "flock", "screen", "tmux", "expect", "at", "batch", "start-stop-daemon", "rlwrap",
    "unbuffer", "ssh", "slogin", "rsh", "dbclient", "mosh", "coproc", "m4", "ed", "ex", "repeat", "taskset", "numactl",
    "runcon", "pkexec", "run0", "machinectl", "entr", "dtach", "abduco", "daemonize", "proot", "fakeroot", "eatmydata",
})  # fmt: skip

# Builtins that change what later names mean, or run texts in ways that are not read here.
MEDDLERS: Final = frozenset({
    "alias", "enable", "bind", "complete", "compgen", "fc", "autoload", "zmodload", "zle", "functions", "emulate",
    "sched", "zcompile", "vared", "source", ".", "let", "setopt", "zstyle", "hash", "rehash", "zparseopts", "abbr",
    "print", "strftime", "zformat", "add-zsh-hook",
})  # fmt: skip
# Builtins that set the variables that their words name.
DECLARING: Final = frozenset({"export", "declare", "typeset", "local", "readonly", "integer", "float", "private"})
READING: Final = frozenset({"read", "mapfile", "readarray", "getopts", "wait"})
# Builtins that look into the names and numbers that their words are.
LOOKING: Final = DECLARING | READING | {"test", "[", "printf", "unset", "return", "exit", "shift", "break", "continue"}
