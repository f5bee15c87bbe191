# shellcheck shell=bash disable=SC2154 # root and cache come from common.sh
# A guest from bash, for scripts/demo; the tests have Tests/Support/GuestHarness. Sourced after common.sh.
# The protocol of the command port is told in guest-init.

# guest_boot FOLDER SECONDS QEMU-ARGUMENT...: starts QEMU with its files in FOLDER; returns when the guest listens.
guest_boot() {
  local folder=$1 seconds=$2 accelerator processor=qemu64
  shift 2
  accelerator=$("$root/scripts/guest-accelerator")
  [[ $accelerator != kvm ]] || processor=host
  mkfifo "$folder/commands.in" "$folder/commands.out"
  exec {guest_in}<>"$folder/commands.in" {guest_out}<>"$folder/commands.out"
  # SeaBIOS would drive the disks before the kernel does; qboot does not.
  qemu-system-x86_64 -accel "$accelerator" -cpu "$processor" -smp 2 -m 512M \
    -object memory-backend-memfd,id=memory,size=512M,share=on -machine pc,memory-backend=memory \
    -nodefaults -no-user-config -display none -bios qboot.rom \
    -kernel "${VHOST_SWIFTD_GUEST_KERNEL:-$cache/guest/vmlinuz}" \
    -initrd "${VHOST_SWIFTD_GUEST_INITRAMFS:-$cache/guest/initramfs}" -append "console=ttyS0 loglevel=5 no_timer_check" \
    -chardev "file,id=log,path=$folder/kernel.log" -serial chardev:log \
    -chardev "pipe,id=commands,path=$folder/commands" -serial chardev:commands \
    "$@" </dev/null >"$folder/qemu.log" 2>&1 {guest_in}>&- {guest_out}>&- &
  guest_pid=$!
  until guest_line $((SECONDS + seconds)) && [[ $line == ready ]]; do
    guest_alive || return 1
  done
}

guest_alive() { kill -0 "$guest_pid" 2>/dev/null; }

# Sets `line` to the next line from the guest; fails when SECONDS reaches $1, or the guest has died.
guest_line() {
  local part
  line=
  while ((SECONDS < $1)) && guest_alive; do
    if IFS= read -r -t 1 part <&"$guest_out"; then
      line+=$part
      return 0
    fi
    line+=$part
  done
  return 1
}

# guest_run SECONDS SCRIPT: runs it in the guest, prints what it prints, returns its status; 255 without an answer.
guest_run() {
  local end=$((SECONDS + $1)) marker="end-$RANDOM$RANDOM$RANDOM" line held=
  printf '%s %s\n' "$marker" "$(base64 -w 0 <<<"$2")" >&"$guest_in"
  # A newline of the protocol's own goes before the last line: one line is held back, to drop it when it is empty.
  local first=1
  while guest_line "$end"; do
    if [[ $line == "$marker "* ]]; then
      [[ -z $held ]] || printf '%s\n' "$held"
      return "${line#* }"
    fi
    ((first)) || printf '%s\n' "$held"
    first=0
    held=$line
  done
  return 255
}

# guest_power_off SECONDS: as the guest's own poweroff; QEMU has to end with status 0.
guest_power_off() {
  printf 'off %s\n' "$(base64 -w 0 <<<'sync; poweroff -f')" >&"$guest_in"
  end_within "$1" "$guest_pid"
}

# end_within SECONDS PID: waits for a child's end and returns its status; 255 when it does not end.
end_within() {
  timeout "$1" tail --pid="$2" -s 0.1 -f /dev/null || return 255
  wait "$2"
}
