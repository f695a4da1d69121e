# shellcheck shell=bash
# For the scripts beside it: packages of other Debian suites, without a change to this machine's apt.

# foreign_apt FOLDER SUITE ARCHITECTURE: reads the suite's list, from the mirror that apt uses here, into FOLDER; from
# then on `apt-get "${apt_options[@]}" download …` and the like take from it.
foreign_apt() {
  local mirror
  mkdir -p "$1/lists/partial" "$1/archives/partial"
  touch "$1/status"
  # shellcheck disable=SC2016 # The dollar sign is apt's.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -v security | head -n 1)
  [ -n "$mirror" ] || return 1
  echo "deb [arch=$3 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" >"$1/sources.list"
  apt_options=(-qq -o "Dir::Etc::SourceList=$1/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::Cache=$1"
    -o "Dir::State::Lists=$1/lists" -o "Dir::State::Status=$1/status" -o "APT::Architectures::=$3"
    -o APT::Sandbox::User=root)
  apt-get "${apt_options[@]}" update >&2
}
