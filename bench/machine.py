# SPDX-License-Identifier: BSD-3-Clause
"""What was measured on, and what the scripts here share of options."""

import argparse
import datetime
import json
import os
import platform
import signal
import sys

from processes import MIB, run


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_size():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def file_system(folder):
    return run("df", "--output=fstype", folder).split()[-1]


def machine(folder):
    """What tells the machine, and FOLDER's file system, from others."""
    now = datetime.datetime.now().astimezone()
    return {
        "date": now.isoformat(timespec="seconds"),
        "cpu": f"{os.cpu_count()} x {cpu_model()}",
        "memory": f"{memory_size() / MIB / 1024:.1f} GiB",
        "kernel": platform.release(),
        "load": " ".join(f"{x:.2f}" for x in os.getloadavg()),
        "file system": file_system(folder),
        "nbdkit": run("nbdkit", "--version").strip(),
    }


def chart_notes(about):
    """The machine and the date, in lines for a chart."""
    return [f"{about['cpu']}, {about['memory']}, Linux {about['kernel']}, "
            f"{about['file system']}",
            f"{about['date'][:10]}, {about['nbdkit']}, load before "
            f"{about['load']}; {about['options']}"]


# --- Options, and what the user sees meanwhile. ----------------------------

def parse_size(text):
    units = {"K": 1024, "M": MIB, "G": 1024 * MIB}
    try:
        size = int(text[:-1]) * units[text[-1].upper()] \
            if text[-1:].upper() in units else int(text)
    except ValueError:
        size = 0
    if size < 64 * MIB or size % MIB:
        raise argparse.ArgumentTypeError("not a size of whole MiB, at least "
                                         "64M")
    return size


def positive(kind):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if value <= 0:
            raise argparse.ArgumentTypeError("not a number above 0")
        return value
    return parse


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


# --- The end. --------------------------------------------------------------

def write_json(path, what):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(what, f, indent=1)
        f.write("\n")


def stop_as_by_hand():
    """As Ctrl-C, so that servers are stopped and files removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)


def give_up(program, reason):
    progress("")
    print(f"{program}: {reason}", file=sys.stderr)
    sys.exit(1)
