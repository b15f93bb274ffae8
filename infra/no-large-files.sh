#!/usr/bin/env bash
# Reject files above 500 kB, except in assets/: DVC tracks images and weights, not git.
set -eu
status=0
for file in "$@"; do
    size=$(stat -c %s "$file" 2>/dev/null || stat -f %z "$file")
    if [ "$size" -gt 512000 ]; then
        echo "$file: $size bytes; track it with \`dvc add\` instead" >&2
        status=1
    fi
done
exit $status
