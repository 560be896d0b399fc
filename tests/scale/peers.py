"""Joins pairs with image URLs in DuckDB or Polars: what a user would run in place of the program's catalog.

    python tests/scale/peers.py duckdb|polars CORPUS SCRATCH

Counts the pair rows that have a URL and a caption and whose image has pixels, and the distinct images among them. Prints one JSON object.
"""

import json
import pathlib
import sys

CAPTION = "caption_title_and_reference_description"


def duckdb_join(corpus, scratch):
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"set temp_directory = '{scratch}'")
    dialect = "delim = '\t', quote = '\"', escape = '\"'"
    found = connection.execute(
        f"""
        with pairs as (
            select image_url from read_csv('{corpus}/train-*.tsv', {dialect}, header = true, all_varchar = true)
            where image_url <> '' and trim({CAPTION}) <> ''
        ), images as (
            select distinct image_url from read_csv('{corpus}/images/*.csv.gz', {dialect}, header = false,
                columns = {{'image_url': 'varchar', 'data': 'varchar', 'metadata_url': 'varchar'}})
        )
        select count(*), count(distinct image_url) from pairs join images using (image_url)
        """
    ).fetchone()
    return duckdb.__version__, found


def polars_join(corpus, scratch):
    import polars

    pairs = polars.scan_csv(f"{corpus}/train-*.tsv", separator="\t", infer_schema=False).select("image_url", CAPTION)
    pairs = pairs.filter((polars.col("image_url") != "") & (polars.col(CAPTION).str.strip_chars() != ""))
    names = ["image_url", "data", "metadata_url"]
    images = polars.scan_csv(f"{corpus}/images/*.csv.gz", separator="\t", has_header=False, new_columns=names, infer_schema=False)
    joined = pairs.join(images.select("image_url").unique(), on="image_url")
    found = joined.select(polars.len(), polars.col("image_url").n_unique().alias("images")).collect(engine="streaming").row(0)
    return polars.__version__, found


def main():
    name, corpus, scratch = sys.argv[1:]
    version, (rows, images) = {"duckdb": duckdb_join, "polars": polars_join}[name](pathlib.Path(corpus), scratch)
    status = pathlib.Path("/proc/self/status").read_text()
    peak_bytes = 1024 * int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps({"version": version, "rows": rows, "images": images, "peak_bytes": peak_bytes}))


if __name__ == "__main__":
    main()
