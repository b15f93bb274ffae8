#!/bin/sh
# Runs a stage for DVC: `sh infra/stage.sh STAGE --subject NAME`.
#
# DVC knows commands, not environments, so this finds the Python that has the project's
# requirements: the one that runs DVC, that of the activated environment, that of .venv, or the one
# on the PATH. The command in dvc.lock stays the same on every machine.
if [ -d /proc/self ]; then
  program_of() { tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | head -n 1; }
  parent_of() { read -r stat 2>/dev/null <"/proc/$1/stat" && set -- ${stat##*) } && echo "$2"; }
else # macOS
  program_of() { ps -o args= -p "$1" 2>/dev/null | cut -d ' ' -f 1; }
  parent_of() { ps -o ppid= -p "$1" 2>/dev/null | tr -d ' '; }
fi

# DVC starts a shell for the command. Some shells become this script, others (dash) its parent.
above=$(parent_of "$PPID")

for python in "$(program_of "$PPID")" "$(program_of "${above:-none}")" \
  "${VIRTUAL_ENV:-.venv}/bin/python" .venv/bin/python python python3; do
  # Another program (a shell, say) would understand -c differently, so ask for a Python's answer.
  answer=$("$python" -c 'import importlib.util as u
print(all(map(u.find_spec, ("dreambooth_core", "pydantic", "torch"))))' 2>/dev/null)
  if [ "$answer" = True ]; then
    exec "$python" -m dreambooth_core "$@"
  fi
done

echo "error: no Python here has the requirements of this project" >&2
echo "hint: activate its environment, or create .venv with \`make install\`, and run DVC again;" >&2
echo "      \`dvc checkout\` restores the output that DVC has removed" >&2
exit 1
