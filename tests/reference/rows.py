"""Writes the reference for the row splitter: malformed delimited files and the records that Python's csv module reads.

    python3 tests/reference/rows.py > tests/reference/rows.jsonl

Each line is a JSON object with the delimiter, the text of the file and its records without blank lines. Bytes are stored
as Latin-1 text, one character per byte. The output is seeded and the same for every Python version from 3.11 on; older
versions refuse NUL bytes.
"""
import csv, io, json, random

csv.field_size_limit(1 << 30)
random.seed(20240607)


def records(text, delimiter):
    return [record for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if record]


def emit(text, delimiter):
    print(json.dumps({"delimiter": delimiter, "text": text, "records": records(text, delimiter)}, separators=(",", ":")))


HAND_WRITTEN = [
    "", "\n", "\r", "\r\n", "\n\n\n", '"', '""', '"""', '""""', '"\n', 'a', 'a\n', 'a\r', 'a\r\n', "a\rb\nc\r\nd",
    'a\tb"c"\td', '"a"b\tc', '"a"b"c\td"\n', '"a""b"\t""\t"c"', '"a\tb\nc\rd\r\ne"\tf', 'a\t"open\nb\tc\n', '\t\t\n\t',
    ' "a"\tb', '"a" \tb', '"a"\r"b"\r\n"c"', '\t"', '\t""', 'x\t"\n\n"\ty\n\nz', "\0\t\0\n", '"\0"x', "NA\tnull\tnan",
    '""a\tb', '"a"""b\tc', '"a"\n"', "\x85a\x0b\x0c\x1c\x1d\x1e\u00a0\tb",
]
for text in HAND_WRITTEN:
    emit(text, "\t")
    emit(text.replace("\t", ","), ",")

PIECES = ["a", "b", "\t", "\t", ",", '"', '"', '""', "\n", "\r", "\r\n", '"\t"', '\t"', '"\n', "x" * 7, " ", "\xe9\x80", "\0"]
for _ in range(420):
    emit("".join(random.choices(PIECES, k=random.randint(1, 24))), random.choice("\t,"))

# Output of csv.writer for random fields, under each quoting rule that the reader supports.
for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
    for end in ("\n", "\r\n"):
        sink = io.StringIO(newline="")
        writer = csv.writer(sink, delimiter="\t", quoting=quoting, lineterminator=end)
        for _ in range(40):
            writer.writerow(["".join(random.choices(PIECES, k=random.randint(0, 5))) for _ in range(random.randint(1, 6))])
        emit(sink.getvalue(), "\t")
