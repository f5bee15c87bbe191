// Watching memory access by access (Tests/Support/MemoryTrap), as tests use it. One watch at a time in a process, on one
// thread: the caller's, or one that the caller can have things done on.

import MemoryTrap
import Synchronization

/// One access to watched memory.
public struct Access: Equatable, Sendable {
  public let piece: Int
  public let offset: Int
  public let isWrite: Bool
}

public enum Trap {
  /// Whether this processor can be asked to.
  public static var isSupported: Bool {
    #if arch(x86_64)
      true
    #else
      false
    #endif
  }

  // One watch at a time: the signals are the process's.
  private static let turn = Mutex<Void>(())

  private final class Listener {
    let body: (Access) -> Void
    init(_ body: @escaping (Access) -> Void) { self.body = body }
  }

  /// Runs `body` with the pieces (whole pages) watched; `after` is called right after each access and may change them. All
  /// accesses are made by the thread that `on` runs things on: the caller's, where nothing is said.
  public static func watch<T>(
    _ pieces: [UnsafeMutableRawBufferPointer], on thread: (@escaping @Sendable () -> Void) -> Void = { $0() },
    after: @escaping (Access) -> Void, _ body: () throws -> T
  ) rethrows -> T {
    try turn.withLock { _ in
      // SAFETY (unsafe Sendable): used on one thread at a time; this one waits for the other.
      nonisolated(unsafe) let pieces = pieces
      nonisolated(unsafe) let listener = Listener(after)
      thread {
        let code = trap_begin(
          Int32(pieces.count), pieces.map { $0.baseAddress }, pieces.map(\.count),
          { context, piece, offset, isWrite in
            guard let context else { return }
            Unmanaged<Listener>.fromOpaque(context).takeUnretainedValue().body(
              Access(piece: Int(piece), offset: offset, isWrite: isWrite != 0))
          }, Unmanaged.passUnretained(listener).toOpaque())
        precondition(code == 0, "this processor does not step")
      }
      defer {
        thread { trap_end() }
        withExtendedLifetime(listener) {}
      }
      return try body()
    }
  }
}
