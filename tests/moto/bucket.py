"""Puts a folder into a bucket, or a prefix of a bucket into a folder: `bucket.py put|get BUCKET PREFIX FOLDER`."""

import pathlib
import sys

import boto3

what, bucket, prefix, folder = sys.argv[1:]
folder = pathlib.Path(folder)
s3 = boto3.client("s3")
if what == "put":
    # Open to all, because requests as to Google are made without a signature here.
    s3.create_bucket(Bucket=bucket, ACL="public-read-write")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(path), bucket, f"{prefix}{path.relative_to(folder)}")
else:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            path = folder / entry["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, entry["Key"], str(path))
