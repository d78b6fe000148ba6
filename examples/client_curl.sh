#!/bin/sh
# One streamed request with curl: the events as the proxy sends them, a line each.
#   sh client_curl.sh ["your question"]
# OPENAI_BASE_URL and OPENAI_API_KEY are read if set; MODEL names the model, which curl can't look up.
# Exit status 3 where the policy stopped the reply, 1 where the stream broke off or was refused.
set -eu

base=${OPENAI_BASE_URL:-http://127.0.0.1:8080/v1}
key=${OPENAI_API_KEY:-gt-example-acme-0dxHqoAGQukUtd_cVPUpQYdx4nuF0q_3PsoAoXII7VM}
model=${MODEL:-Qwen/Qwen3-VL-8B-Thinking}
question=${1:-What is 17 times 23?}

# Just enough for a question of one line: backslash and quote are what JSON can't take as they are.
escaped=$(printf '%s' "$question" | sed 's/\\/\\\\/g; s/"/\\"/g')

events=$(mktemp)
trap 'rm -f "$events"' EXIT
curl --silent --show-error --no-buffer "$base/chat/completions" \
  -H "Authorization: Bearer $key" -H "Content-Type: application/json" \
  -d "{\"model\": \"$model\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"$escaped\"}]}" |
  tee "$events"

# A cut is a finish_reason, or with the policy's `cut_shape: error` an error event.
if grep -q -e '"finish_reason": *"content_filter"' -e '"code": *"content_filter"' "$events"; then
  echo "stopped by policy" >&2
  exit 3
fi
if ! grep -q '^data: \[DONE\]' "$events"; then
  echo "the reply wasn't finished" >&2
  exit 1
fi
