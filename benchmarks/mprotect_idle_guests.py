#!/usr/bin/env python3
"""Row 10: who does not map what changes its protection costs nothing, attached or not.

    alone    10 processes are attached, and all map the range
    beside   1,000 are attached; 990 of them map another shared region instead
    tail     1,000 are attached; 990 of them map another part of the same region

Time of one mprotect of 1 GiB mapped with MAP_SHARED_PT, until the last of the 10 has it.
"""

import protect_sides
import report
import sides

_ALONE, _BESIDE, _TAIL = "hostmm-alone", "hostmm-beside", "hostmm-tail"
_IDLE_MAPS = {_BESIDE: "other", _TAIL: "tail"}
_LABELS = {"us": "until the last one has it, us", "read_only_us": "  to read-only",
           "writable_us": "  to writable"}
_PAIRS = 50
_TARGET = 1.5


def main():
    parser = report.arguments(__doc__, rounds=5, quick_rounds=1)
    sides.add_option(parser, (_ALONE, _BESIDE, _TAIL))
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of the region (default 1 GiB)")
    parser.add_argument("--mapped", type=int, default=10, help="processes that map it (default 10)")
    parser.add_argument("--attached", type=int, default=1000, help="in all (default 1,000)")
    options = report.parse(parser)
    settings = {"bytes": options.bytes, "mapped": options.mapped, "attached": options.attached}

    def measure(side):
        idle = options.attached - options.mapped if side in _IDLE_MAPS else 0
        return protect_sides.run(
            protect_sides.HOSTMM_HUGE, hostmm, options.bytes, options.mapped, _PAIRS, idle,
            _IDLE_MAPS.get(side, "other"))

    with sides.optional_hostmm(options) as hostmm:
        samples = sides.alternate(options, hostmm, measure)
        settings["hostmm"] = hostmm.messages if hostmm else []

    def claim(side, what):
        return report.Claim(
            f"shared mprotect, {options.attached:,} attached, {options.mapped} map the range"
            f" ({what}) / {options.mapped} attached",
            samples.ratio("us", side, _ALONE), "<=", _TARGET, samples.why_missing(side, _ALONE))

    claims = [claim(_BESIDE, "others: another region"), claim(_TAIL, "others: its tail")]
    return report.finish("mprotect_idle_guests", options, samples, claims, _LABELS, settings)


if __name__ == "__main__":
    report.run_main(main)
