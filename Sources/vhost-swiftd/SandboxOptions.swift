// The options of the process's sandbox, and the sandbox that a set of devices needs.

import ArgumentParser
import Glibc
import HostIO

extension SandboxMode: ExpressibleByArgument {}

struct SandboxOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "on: while it serves it can open, make, start and reach nothing more; log: the kernel logs what on refuses; off. (default: on)",
      valueName: "mode"))
  var sandbox: SandboxMode?

  @Option(
    help: ArgumentHelp(
      "Started by root: open everything, then serve as this user: a name, or uid[:gid].", valueName: "user"))
  var user: String?

  /// Neither was given.
  var isUnset: Bool { sandbox == nil && user == nil }

  func validate() throws {
    guard let user else { return }
    guard UserIdentity(user) != nil else {
      throw ValidationError("--user '\(user)': expected a user's name, or numbers: uid or uid:gid")
    }
    guard geteuid() == 0 else { throw ValidationError("--user '\(user)': only root can become another user") }
  }

  /// What the process needs for its devices. `made`: a file that a start which fails takes away again; `reread`: one that is
  /// read again at SIGHUP, by its path, since an editor puts another file there.
  static func needs(of services: [Service], removing made: String?, rereading reread: String?) -> SandboxNeeds
  {
    var needs = SandboxNeeds()
    for service in services { needs.formUnion(service.sandboxNeeds) }
    if let made { needs.removesIn.insert(SandboxNeeds.folder(of: made)) }
    if let reread { needs.readsIn.insert(SandboxNeeds.folder(of: reread)) }
    return needs
  }

  /// Starts the devices' threads between the two halves of the sandbox, and closes it around them. Front-ends are served
  /// from `Service.open` on. `midway`: files are closed, system calls are not yet.
  func close(
    around services: [Service], removing made: String? = nil, rereading reread: String? = nil,
    midway: () -> Void = {}
  ) throws {
    let needs = Self.needs(of: services, removing: made, rereading: reread)
    var sandbox = Sandbox(sandbox ?? .on, needs, identity: user.flatMap(UserIdentity.init))
    if let user = sandbox.user { for service in services { try service.server.giveSocket(to: user) } }
    try sandbox.closeFiles()
    let folders = Set(services.flatMap(\.sandboxNeeds.removesIn)).sorted()
    var gaps = folders.filter { !Sandbox.mayRemove(in: $0) }.map {
      "nothing in '\($0)' can be removed by user \(geteuid()): the socket stays there at the end"
    }
    var restricts = true
    for service in services where try !service.start(restricted: sandbox.mode == .on) { restricts = false }
    if !restricts { gaps.append("this kernel cannot restrict an io_uring to some operations") }
    midway()
    try sandbox.closeCalls()
    for gap in gaps + sandbox.gaps { services.first?.notice("sandbox: \(gap)") }
  }
}

/// Crashes as the kernel has them.
enum Crashes {
  /// Takes out the handlers by which the Swift runtime would start a program of its own, to print a backtrace: in the sandbox
  /// nothing can be started. First thing in `main`, before anything of ours handles a fault.
  static func leaveToTheKernel() {
    for fault in [SIGQUIT, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP] { signal(fault, SIG_DFL) }
  }
}
