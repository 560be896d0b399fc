#!/usr/bin/env bash
# Tests the page in Chromium: tests/browser/run.sh PROGRAM [FOLDER]
# Needs Debian's packages chromium and chromium-driver, which it installs as root, and npm for axe-core. Keeps the screenshots in
# FOLDER (target/browser/shots).
set -euo pipefail
program=$(realpath "$1")
cd "$(dirname "$0")/../.."
shots=${2:-target/browser/shots}
axe=4.14.1

if ! command -v chromedriver > /dev/null || ! command -v chromium > /dev/null; then
    [ "$(id --user)" = 0 ] && command -v apt-get > /dev/null || { echo "NOT TESTED: chromium and chromedriver are missing" >&2; exit 77; }
    apt-get update -q > /dev/null
    apt-get -o DPkg::Lock::Timeout=300 install -y -q chromium chromium-driver > /dev/null
fi
mkdir -p target/browser
[ -f "target/browser/node_modules/axe-core/axe.min.js" ] || npm install --silent --no-save --no-audit --prefix target/browser "axe-core@$axe" > /dev/null
CARGO_TARGET_DIR=target/browser/build cargo build --quiet --locked --manifest-path tests/browser/Cargo.toml
target/browser/build/debug/browser-tests "$program" tests/reference/text/xlmr target/browser/node_modules/axe-core/axe.min.js "$shots"
