# How the jobs of this folder start lrtrain, and whether they go back into the queue. Sourced by them.
#
# CONTAINER chooses where lrtrain comes from:
#   empty                       PATH, as in an activated .venv
#   apptainer:lrtrain.sif       an image file, by Apptainer
#   pyxis:registry#image:tag    an image, by srun's plugin pyxis

command=(lrtrain) options=(--kill-on-bad-exit=1)
case ${CONTAINER:-} in
"") ;;
apptainer:*) command=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "${CONTAINER#apptainer:}" lrtrain) ;;
pyxis:*) options+=(--container-image="${CONTAINER#pyxis:}" --container-mounts="$PWD:$PWD" --container-workdir="$PWD") ;;
*) echo "CONTAINER is $CONTAINER: give apptainer:FILE.sif, pyxis:IMAGE or nothing" >&2 && exit 2 ;;
esac

export PYTHONUNBUFFERED=1
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi # not handed on since 22.05

# Runs lrtrain as a step and sets `status` to 0, or to the exit code that says most about its end: the first one, but 75,
# 138 and 2 before others. srun's own does not: when a task has ended with 75, it ends the others by SIGTERM, and its code
# is the highest, 143. So each task writes its own down.
step() {
  local codes code srun
  codes=$PWD/.step-$SLURM_JOB_ID
  : > "$codes" || exit 1
  # The shell around each task waits for it, whatever signal it gets: Slurm sends signals to both.
  srun "${options[@]}" bash -c '
    trap : USR1 USR2 TERM HUP INT
    codes=$1; shift
    "$@"; code=$?
    [ $code = 0 ] || echo $code >> "$codes"
    exit $code' task "$codes" "${command[@]}" "$@" &
  srun=$!
  trap 'kill -USR1 $srun' USR1 # of `scancel --batch` or `--full`, and of --signal=B:
  trap 'kill -TERM $srun' TERM
  while kill -0 $srun 2> /dev/null; do wait $srun; done
  wait $srun
  status=$?
  trap : USR1 TERM
  if [ $status != 0 ] && [ -s "$codes" ]; then
    read -r status < "$codes"
    for code in 75 138 2; do
      if grep -qx $code "$codes"; then status=$code; fi
    done
  fi
  rm -f "$codes"
}

# Ends the job with `status`, after putting it back into the queue if going on makes sense.
finish() {
  local job
  job=$(scontrol show job -o "$SLURM_JOB_ID")
  case $status in
  0 | 2) ;;                         # done; a mistake of the user's
  138) requeue "told by SIGUSR1" ;; # where lrtrain was still starting, or has no scontrol in its container
  75) # storage or a host that may come back
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then requeue "a failure that may pass"; fi
    ;;
  *) # Slurm does not start these again if the job ends before it is preempted, or before the node is known to be down.
    if [[ $job =~ \ PreemptTime=[0-9] ]]; then
      requeue "preempted"
    elif running && ! nodes_answer && running; then # CANCELLED or COMPLETING: somebody has ended it
      requeue "a node is gone"
    fi
    ;;
  esac
  exit "$status"
}

running() {
  job=$(scontrol show job -o "$SLURM_JOB_ID")
  [[ $job == *JobState=RUNNING* ]]
}

nodes_answer() {
  [ "$SLURM_NNODES" = 1 ] || timeout 90 srun --quiet --overlap --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true
}

requeue() {
  local said
  if [[ $job == *JobState=CANCELLED* ]]; then return; fi
  if said=$(scontrol requeue "$SLURM_JOB_ID" 2>&1); then
    echo "$1: job $SLURM_JOB_ID goes back into the queue" >&2
  elif [[ $said != *"pending execution"* ]]; then # where lrtrain has done it
    echo "$1: job $SLURM_JOB_ID cannot go back into the queue: $said" >&2
  fi
}
