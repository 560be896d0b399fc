"""Measures the program on a synthetic corpus with the row counts of the real one, beside DuckDB's and Polars's join.

Needs numpy, and duckdb and polars for the peers; `tests/scale/run.sh` installs them. Ends with a Markdown table. Exits with 1 when a stage
fails, when a count or a pixel is wrong, when a resumed run differs from an undisturbed one, or when memory passes its bound.
"""

import argparse
import dataclasses
import filecmp
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time

import corpus

MIB = 1 << 20
# Promises of docs/guarantees.md. While the catalog is built, the join index takes at most 16 bytes a labelled row, and a class takes,
# beside its text, 8 bytes of offset, 25 of a growing hash table and 2 for its language, and 8 more for a caption list. Once the catalog is
# saved, only the join index is left, 12 bytes an entry; there are at most as many entries as labelled rows.
INDEX_BYTES = 512 << 10
BUILT_INDEX_BYTES_PER_ROW, LOADED_INDEX_BYTES_PER_ROW = 16, 12
CLASS_BYTES = {"train": 35, "list": 43}
# Files of a run directory that differ between two runs to the same result.
PROCESS_FILES = {"report.json", "run.toml", "status.json", "lock", "events", "scratch"}
CHUNK_ROWS = 2048


class Failed(Exception):
    """A stage that did not do what it should."""


@dataclasses.dataclass
class Usage:
    """What a process took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    killed: bool
    log: str


def peak_of(pid):
    """Largest resident memory of a process so far, in bytes."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure(command, log_path, timeout, kill_at=None):
    """Runs a command to its end, or until the program kills itself at the step `kill_at`.

    The memory is read from /proc while it runs: `ru_maxrss` of a child includes the memory of the process that started it.
    """
    started, peak, code = time.perf_counter(), 0, None
    environment = {**os.environ, "WIKICAP_KILL_AT": kill_at} if kill_at else None
    with open(log_path, "wb") as log:
        child = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while code is None:
                peak = max(peak, peak_of(child.pid))
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                seconds = time.perf_counter() - started
                if pid:
                    code = child.returncode = os.waitstatus_to_exitcode(status)
                elif seconds > timeout:
                    child.kill()
                else:
                    time.sleep(0.005 if seconds < 60 else 0.05)
        finally:
            if code is None:
                child.kill()
                child.wait()
    text = log_path.read_text(errors="replace")
    command = " ".join(str(part) for part in command)
    if seconds > timeout:
        raise Failed(f"`{command}` did not end within {timeout:.0f} s (`--timeout`)")
    if kill_at and code == 0:
        raise Failed(f"`{command}` ended before the step `{kill_at}`, at which it was to be killed")
    if code != (-signal.SIGKILL if kill_at else 0):
        raise Failed(f"`{command}` ended with {code}: {text[-2000:].strip()}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, peak, code != 0, text)


class Benchmark:
    """The stages on one corpus, their table and what was wrong."""

    def __init__(self, program, work, memory, timeout, keep):
        self.program, self.work, self.memory, self.timeout, self.keep = program, work, memory, timeout, keep
        self.rows, self.problems = [], []
        self.corpus = work / "corpus"

    def expect(self, what, found, expected):
        if found != expected:
            self.problems.append(f"{what}: found {found}, expected {expected}")

    def config(self, name, run, classes, images):
        text = f'[run]\ndir = "{self.work / run}"\n[captions]\nclasses = "{classes}"\n'
        if classes == "list":
            text += f'list = "{self.corpus}/test_caption_list.csv"\n'
        text += f'[pairs]\nshards = ["{self.corpus}/train-*.tsv"]\n'
        if images:
            text += f'[images]\nshards = ["{self.corpus}/images/*.csv.gz"]\n'
        text += f"[preprocess]\nsize_px = {corpus.SIDE_PX}\nmax_pixels = 1000000\n[chunks]\nrows = {CHUNK_ROWS}\n"
        path = self.work / f"{name}.toml"
        path.write_text(text)
        machine = self.work / "machine.toml"
        machine.write_text(f'[limits]\nmemory = "{self.memory}"\n')
        return [self.program, "run", "--config", path, "--machine", machine]

    def note(self, stage, rows, usage, seconds=None, bound=None):
        """Adds a line to the table; the rate is of `seconds`, or of the whole process."""
        rate = rows / max(seconds or usage.seconds, 1e-6) if rows else None
        self.rows.append((stage, rows, usage.seconds, rate, usage.cpu_seconds, usage.peak_bytes, bound))
        print(f"{stage}: {usage.seconds:.2f} s", file=sys.stderr, flush=True)
        if bound and usage.peak_bytes > bound:
            self.problems.append(f"{stage}: {usage.peak_bytes / MIB:.1f} MiB of memory, more than the bound of {bound / MIB:.1f} MiB")

    def bound(self, classes, truth, builds):
        """Most memory that a stage may take: the limit, the join index, and, where it `builds` the catalog, the classes with their text."""
        rows, limit = truth[classes]["labelled_rows"], parse_bytes(self.memory)
        if not builds:
            return limit + LOADED_INDEX_BYTES_PER_ROW * rows + INDEX_BYTES
        text = truth["list_bytes"] if classes == "list" else truth["caption_bytes"]
        index = BUILT_INDEX_BYTES_PER_ROW * rows + INDEX_BYTES
        return limit + index + text + CLASS_BYTES[classes] * truth[classes]["classes"]

    def report(self, run):
        return json.loads((self.work / run / "report.json").read_text())

    def peak(self, usage, report):
        """The program's own figure catches what the last poll missed."""
        usage.peak_bytes = max(usage.peak_bytes, last_process(report).get("peak_memory_bytes") or 0)

    def check_catalog(self, stage, report, classes, truth):
        found, expected = report["catalog"], truth[classes]
        self.expect(f"{stage}, pair rows", found["pair_rows"], truth["pair_rows"])
        for key in ["classes", "labelled_rows", "labelled_images"]:
            self.expect(f"{stage}, {key}", found[key], expected[key])
        for key in ["missing_url", "missing_caption"]:
            self.expect(f"{stage}, {key}", found["pair_rows_skipped"].get(key, 0), truth[key])

    def check_images(self, stage, report, classes, truth):
        tally, expected = report["images"]["tally"], truth[classes]
        skipped, quarantined = sum(tally["skipped"].values()), sum(tally["quarantined"].values())
        self.expect(f"{stage}, image rows", tally["rows"], truth["image_rows"])
        # Each shard keeps its own rows with a URL; of several shards, the first one counts.
        self.expect(f"{stage}, kept without duplicates", tally["kept"] - report["images"].get("duplicates", 0), expected["kept"])
        self.expect(f"{stage}, quarantined", quarantined, expected["bad"])
        self.expect(f"{stage}, kept + skipped + quarantined", tally["kept"] + skipped + quarantined, tally["rows"])

    def stage(self, name, run, classes, images, truth, kill_at=None):
        """Runs one configuration and adds its line; returns the usage and, when it was not killed, the report."""
        command = self.config(run if images else f"{run}-catalog", run, classes, images)
        # The journal entry is written once the catalog is complete.
        builds = not (self.work / run / "journal/catalog.json").exists()
        usage = measure(command, self.work / "log", self.timeout, kill_at)
        bound = self.bound(classes, truth, builds)
        if usage.killed:
            self.note(f"{name} (killed)", None, usage, bound=bound)
            return usage, None
        report = self.report(run)
        self.peak(usage, report)
        wanted = "images" if images else "pairs"
        stages = last_process(report).get("stages", report["stages"])
        done = next((stage for stage in stages if stage["name"] == wanted), None)
        self.note(name, done and done["done"], usage, done and done["seconds"], bound)
        self.check_catalog(name, report, classes, truth)
        if images:
            self.check_images(name, report, classes, truth)
        return usage, report

    def run(self, truth):
        """All stages of the program."""
        self.stage('catalog, `classes = "list"`', "list", "list", False, truth)
        self.stage("few images wanted, with that catalog", "list", "list", True, truth)
        self.remove("list")
        catalog, _ = self.stage('catalog, `classes = "train"`', "train", "train", False, truth)
        self.stage(f"pixel product, {corpus.SIDE_PX} px", "train", "train", True, truth)
        before = snapshot(self.work / "train")
        self.stage("finished run found complete", "train", "train", True, truth)
        # The rate of a run that has nothing to do says nothing.
        self.rows[-1] = (*self.rows[-1][:3], None, *self.rows[-1][4:])
        if snapshot(self.work / "train") != before:
            self.problems.append("the finished run was written again")
        self.resume(catalog.seconds, truth)

    def resume(self, catalog_seconds, truth):
        """Kills a run in the catalog and in the images, resumes it, and compares its files with those of the undisturbed run."""
        half = len(list((self.work / "train/journal/chunks").glob("*.json"))) // 2
        # A catalog that takes longer is written in segments before its files; a shorter one is killed between its files.
        in_catalog = "renamed catalog/partial/ 2" if catalog_seconds > 20 else "renamed catalog/ 1"
        self.stage("resume: first start, stopped in the catalog", "resumed", "train", True, truth, in_catalog)
        self.stage("resume: second start, stopped in the images", "resumed", "train", True, truth, f"linked journal/chunks/ {half}")
        self.stage("resume: last start, to the end", "resumed", "train", True, truth)
        differences = compare(self.work / "train", self.work / "resumed")
        if differences:
            self.problems.append(f"the resumed run differs from the undisturbed one: {', '.join(differences[:5])}")
        self.remove("resumed")

    def peers(self, truth):
        """The join of the same files in DuckDB and Polars. A peer that fails is a line in the table, not a failure."""
        expected = {"rows": truth["joined_rows"], "images": truth["joined_images"]}
        scratch = self.work / "peer"
        for name in ["duckdb", "polars"]:
            scratch.mkdir(exist_ok=True)
            command = [sys.executable, pathlib.Path(__file__).with_name("peers.py"), name, self.corpus, scratch]
            try:
                usage = measure(command, self.work / "log", self.timeout)
                found = json.loads(usage.log.splitlines()[-1])
                usage.peak_bytes = max(usage.peak_bytes, found["peak_bytes"])
            except (Failed, ValueError, IndexError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                self.rows.append((f"{name}: failed", None, None, None, None, None, None))
                continue
            right = all(found[key] == count for key, count in expected.items())
            wrong = "" if right else f", counts {found['rows']} rows where {expected['rows']} are right"
            self.note(f"{name} {found['version']}, join alone{wrong}", truth["pair_rows"], usage)
            shutil.rmtree(scratch)

    def pixels(self, sizes, truth):
        """Compares every stored pixel with the colour that the corpus has for its URL."""
        seen, wrong = corpus.wrong_pixels(sizes, self.work / "train/chunks")
        duplicates = corpus.duplicate_rows(self.work / "train/duplicates.parquet")
        self.expect("rows in the chunks without duplicates", seen - duplicates, truth["train"]["kept"])
        self.expect("rows with wrong pixels", wrong, 0)
        return seen

    def remove(self, run):
        if not self.keep:
            shutil.rmtree(self.work / run)

    def table(self):
        lines = [
            "| stage | rows | process, s | rows/s | CPU, s | peak, MiB | bound, MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for stage, rows, seconds, rate, cpu, peak, bound in self.rows:
            cells = [
                "" if rows is None else f"{rows:,}",
                "" if seconds is None else f"{seconds:.2f}",
                "" if rate is None else f"{rate:,.0f}",
                "" if cpu is None else f"{cpu:.2f}",
                "" if peak is None else f"{peak / MIB:.0f}",
                "" if bound is None else f"{bound / MIB:.0f}",
            ]
            lines.append(f"| {stage} | {' | '.join(cells)} |")
        return "\n".join(lines)


def last_process(report):
    """The figures of the process that wrote a report."""
    return (report.get("processes") or [report])[-1]


def snapshot(folder):
    """Size and modification time of the artefacts below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    stats = {str(path.relative_to(folder)): path.stat() for path in files if path.relative_to(folder).parts[0] not in PROCESS_FILES}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def compare(expected, found):
    """Artefacts that differ between two run directories."""
    names = snapshot(expected).keys() | snapshot(found).keys()
    _, different, missing = filecmp.cmpfiles(expected, found, names, shallow=False)
    return sorted(different + missing)


def parse_bytes(text):
    """Bytes of a size such as `256 MiB`."""
    number, unit = text.split()
    return round(float(number) * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit])


def arguments():
    sizes = corpus.Sizes()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", default="target/release/wikicap-pipeline", help="the executable (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all row counts, such as 0.01 (%(default)s)")
    parser.add_argument(
        "--work",
        type=pathlib.Path,
        default=pathlib.Path("target/scale"),
        help="folder for the corpus and the runs; the full size needs about 35 GB (%(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the corpus and the runs; a kept corpus of the same sizes is used again")
    parser.add_argument(
        "--no-peers", action="store_true", help="leave out DuckDB and Polars, and the comparison of pixels, which needs Polars"
    )
    parser.add_argument("--corpus-only", action="store_true", help="write the corpus, and keep it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that write the corpus (%(default)s)")
    parser.add_argument("--memory", default="256 MiB", help="`limits.memory` of the runs (%(default)s)")
    parser.add_argument("--timeout", type=float, help="seconds that one process may take (300 + 4 h × scale)")
    parser.add_argument("--seed", type=int, default=sizes.seed, help="the same seed writes the same corpus (%(default)s)")
    counts = parser.add_argument_group("sizes at scale 1; the defaults are the real corpus")
    for name, meaning in {
        "pair_rows": "rows of all pairs files",
        "pair_files": "pairs files",
        "image_rows": "rows of all image files",
        "image_files": "image files",
        "captions": "distinct captions of the pairs",
        "list_rows": "rows of the caption list",
        "urls": "distinct image URLs of the pairs",
        "bad_images": "image rows that cannot be decoded",
        "context_bytes": "mean length of the context column, which the program skips; about 1,500 in the real corpus",
    }.items():
        counts.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=getattr(sizes, name), metavar="N", help=f"{meaning} (%(default)s)"
        )
    shares = parser.add_argument_group("shares")
    for name, meaning in {
        "captioned": "pair rows with a caption after the title",
        "with_pixels": "of those, rows whose image has pixels",
        "bare_titles": "distinct captions that are a title alone",
        "duplicate_images": "image rows that repeat a URL",
        "list_overlap": "captions of the list that occur in the pairs",
        "list_duplicates": "rows of the list that repeat another",
    }.items():
        shares.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=getattr(sizes, name), metavar="SHARE", help=f"{meaning} (%(default)s)"
        )
    args = parser.parse_args()
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(sizes)}
    args.sizes = corpus.Sizes(**fields).scaled(args.scale)
    if problem := args.sizes.problem():
        parser.error(problem)
    try:
        parse_bytes(args.memory)
    except (ValueError, KeyError):
        parser.error(f"--memory must be a number and a unit such as `256 MiB`, got `{args.memory}`")
    return args


def git_revision():
    """Commit of the tree that this script is in, with a mark if it has changes."""
    try:
        where = pathlib.Path(__file__).parent
        return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "an unknown revision"


def main():
    args = arguments()
    sizes, work = args.sizes, args.work.absolute()
    program = shutil.which(args.program) or sys.exit(f"`{args.program}` is not an executable: build it, or name another")
    work.mkdir(parents=True, exist_ok=True)
    needed, free = sizes.estimated_bytes(), shutil.disk_usage(work).free
    # Chunks of two runs and the peers' temporary files come on top.
    if not (work / "corpus/truth.json").exists() and free < needed * 1.4:
        sys.exit(
            f"`{work}` has {free / 1e9:.1f} GB free, {needed * 1.4 / 1e9:.1f} GB are needed: choose another --work or a smaller --scale"
        )
    for name in ["list", "train", "resumed", "peer"]:
        shutil.rmtree(work / name, ignore_errors=True)
    bench = Benchmark(os.path.abspath(program), work, args.memory, args.timeout or 300 + 4 * 3600 * args.scale, args.keep)
    started, loads = time.perf_counter(), os.getloadavg()
    truth = corpus.write_corpus(sizes, bench.corpus, args.jobs)
    print(f"corpus: {truth['bytes'] / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    if args.corpus_only:
        return
    compared = 0
    try:
        bench.run(truth)
        if not args.no_peers:
            bench.peers(truth)
            compared = bench.pixels(sizes, truth)
    except Failed as error:
        bench.problems.append(str(error))
    finally:
        if not args.keep:
            for name in ["corpus", "list", "train", "resumed", "peer"]:
                shutil.rmtree(work / name, ignore_errors=True)
    revision = git_revision()
    counts = f"{sizes.pair_rows:,} pair rows, {sizes.image_rows:,} images, {sizes.captions:,} distinct captions"
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    load = f"load {loads[0]:.1f} at the start and {os.getloadavg()[0]:.1f} at the end, nice {os.nice(0)}"
    machine = f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}; {load}"
    print(f"{counts}, seed {sizes.seed}; limits.memory {args.memory}; program of {revision}; {machine}\n")
    print(bench.table())
    if compared:
        print(f"\npixels compared: {compared:,} images")
    for problem in bench.problems:
        print(f"error: {problem}")
    print("\nscale: failed" if bench.problems else "\nscale: all counts right, memory within its bounds, resumed files the same bytes")
    sys.exit(1 if bench.problems else 0)


if __name__ == "__main__":
    main()
