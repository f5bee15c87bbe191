// What the kernel says of the calling thread's sandbox, told without /proc, which the sandbox hides.

import CLinux
import Glibc

package struct SandboxState: Sendable {
  package let noNewPrivileges: Bool
  package let hasFilter: Bool
  package let hasNoCapabilities: Bool

  package init() {
    noNewPrivileges = clx_prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
    hasFilter = clx_prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2
    var sets: (UInt64, UInt64, UInt64) = (0, 0, 0)
    // SAFETY: fills the local values.
    let known = unsafe clx_capabilities(&sets.0, &sets.1, &sets.2) == 0
    hasNoCapabilities = known && sets == (0, 0, 0)
  }
}
