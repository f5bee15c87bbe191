// A program that the tests start: QEMU, a back-end, a tool. Started and awaited on any thread; each has a thread
// of its own, because the kernel ties the child's life to the thread that started it.

import Foundation

/// A child that cannot outlive the test process, is ended by its process id only, and is awaited with a deadline.
public final class ChildProcess: Sendable {
  public enum Exit: Sendable, Equatable {
    case status(Int32)
    case signal(Int32)
  }

  public let name: String
  public let pid: pid_t
  /// Where its standard output and error go.
  public let logPath: String
  private let life: Life

  /// Starts a program (looked up in PATH). Its standard input is empty; `descriptors` become its 3, 4, ….
  public init(
    _ program: String, _ arguments: [String], log: String, descriptors: [Int32] = [],
    environment: [String: String] = [:]
  ) throws {
    name = URL(fileURLWithPath: program).lastPathComponent
    logPath = log
    // setpriv becomes the program, after asking the kernel to kill it should the thread that started it end.
    let command = ["setpriv", "--pdeathsig", "KILL", "--", program] + arguments
    let merged = ProcessInfo.processInfo.environment.merging(environment) { _, new in new }
    let life = Life()
    let thread = Thread {
      life.live { try spawn(command, environment: merged, log: log, descriptors: descriptors) }
    }
    thread.start()
    self.life = life
    pid = try life.started()
  }

  deinit { life.end(SIGKILL) }

  /// Everything it has written so far.
  public var log: String {
    String(decoding: FileManager.default.contents(atPath: logPath) ?? Data(), as: UTF8.self)
  }

  /// How it ended; nil while it runs.
  public var exit: Exit? { life.exit(by: Deadline(seconds: 0)) }

  /// Sends a signal; nothing when it has ended, so that a process id that was given away again is never hit.
  public func signal(_ number: Int32) { life.send(number) }

  /// Waits for its end; throws with its log when the deadline passes.
  @discardableResult
  public func waitExit(within seconds: Double) throws -> Exit {
    guard let exit = life.exit(by: Deadline(seconds: seconds)) else {
      throw HarnessError("\(name) has not ended after \(seconds) s", logs: [(name, log)])
    }
    return exit
  }

  /// Asks it to end, kills it when it does not, and returns how it ended.
  @discardableResult
  public func terminate(within seconds: Double = 20) -> Exit? {
    signal(SIGTERM)
    return life.exit(by: Deadline(seconds: seconds)) ?? kill()
  }

  @discardableResult
  public func kill() -> Exit? {
    life.end(SIGKILL)
    return exit
  }

  /// Waits until `condition` holds; throws when the child ends before, or the deadline passes. For what nobody
  /// announces (a line in a log, a socket that listens): looks again every 20 ms, and at once when the child ends.
  public func wait(until what: String, within seconds: Double, _ condition: () throws -> Bool) throws {
    let deadline = Deadline(seconds: seconds)
    while try !condition() {
      if let exit = life.exit(by: Deadline(seconds: min(0.02, deadline.remaining))) {
        throw HarnessError("\(name) ended with \(exit) before \(what)", logs: [(name, log)])
      }
      if deadline.hasPassed {
        throw HarnessError("\(name): not after \(seconds) s: \(what)", logs: [(name, log)])
      }
    }
  }
}

/// The child as its thread and the others see it.
private final class Life: @unchecked Sendable {
  // Everything below is read and written with `condition` locked.
  private let condition = NSCondition()
  private var pid: pid_t = 0
  private var failure: (any Error)?
  private var outcome: ChildProcess.Exit?

  /// The thread's whole work: start, wait, note the end.
  func live(_ start: () throws -> pid_t) {
    let child: pid_t
    do {
      child = try start()
    } catch {
      condition.withLock { failure = error }
      condition.broadcast()
      return
    }
    condition.withLock { pid = child }
    condition.broadcast()
    // Not reaped until the lock is held: as long as `outcome` is nil the process id is the child's.
    var information = siginfo_t()
    while waitid(P_PID, id_t(child), &information, WEXITED | WNOWAIT) != 0 && errno == EINTR {}
    condition.withLock {
      var status: Int32 = 0
      waitpid(child, &status, 0)
      outcome = status & 0x7f == 0 ? .status((status >> 8) & 0xff) : .signal(status & 0x7f)
    }
    condition.broadcast()
  }

  func started() throws -> pid_t {
    try condition.withLock {
      while pid == 0 && failure == nil { condition.wait() }
      if let failure { throw failure }
      return pid
    }
  }

  func send(_ signal: Int32) {
    condition.withLock {
      if outcome == nil { _ = Glibc.kill(pid, signal) }
    }
  }

  func exit(by deadline: Deadline) -> ChildProcess.Exit? {
    let date = Date(timeIntervalSinceNow: deadline.remaining)
    return condition.withLock {
      while outcome == nil {
        if !condition.wait(until: date) { break }
      }
      return outcome
    }
  }

  func end(_ signal: Int32) {
    send(signal)
    _ = exit(by: Deadline(seconds: 20))
  }
}

/// posix_spawn with default signals and no descriptor but standard ones and those given.
private func spawn(
  _ command: [String], environment: [String: String], log: String, descriptors: [Int32]
) throws -> pid_t {
  var actions = posix_spawn_file_actions_t()
  posix_spawn_file_actions_init(&actions)
  defer { posix_spawn_file_actions_destroy(&actions) }
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
  posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0o600)
  posix_spawn_file_actions_adddup2(&actions, 1, 2)
  // Copies far above the targets first: one of the descriptors may itself be 3 or 4.
  let copies = descriptors.map { fcntl($0, F_DUPFD_CLOEXEC, 100) }
  defer { copies.forEach { close($0) } }
  for (index, copy) in copies.enumerated() {
    posix_spawn_file_actions_adddup2(&actions, copy, Int32(3 + index))
  }
  // What other tests have open is not for the child. Closing what is not open is no error here.
  let highest = openDescriptors().max() ?? 3
  for descriptor in Int32(3 + copies.count)..<max(1024, highest + 64) {
    posix_spawn_file_actions_addclose(&actions, descriptor)
  }

  var attributes = posix_spawnattr_t()
  posix_spawnattr_init(&attributes)
  defer { posix_spawnattr_destroy(&attributes) }
  var signals = sigset_t()
  sigemptyset(&signals)
  posix_spawnattr_setsigmask(&attributes, &signals)
  sigfillset(&signals)
  posix_spawnattr_setsigdefault(&attributes, &signals)
  posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

  let arguments = command.map { strdup($0) } + [nil]
  let variables = environment.map { strdup("\($0)=\($1)") } + [nil]
  defer { (arguments + variables).forEach { free($0) } }
  var pid: pid_t = 0
  let error = posix_spawnp(&pid, command[0], &actions, &attributes, arguments, variables)
  guard error == 0 else {
    throw HarnessError("cannot start \(command.joined(separator: " ")): \(String(cString: strerror(error)))")
  }
  return pid
}

private func openDescriptors() -> [Int32] {
  (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd"))?.compactMap { Int32($0) } ?? []
}
