// Watching a ring's memory access by access (Tests/Support/MemoryTrap), as tests here use it. On the test's thread.

import Foundation
import MemoryTrap
import Synchronization
import Testing

/// One access to watched memory.
struct Access: Equatable {
  let piece: Int
  let offset: Int
  let isWrite: Bool
}

enum Trap {
  /// Whether this processor can be asked to.
  static var isSupported: Bool {
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

  /// Runs `body` with the pieces (whole pages) watched; `after` is called right after each access and may change them.
  static func watch<T>(
    _ pieces: [UnsafeMutableRawBufferPointer], after: @escaping (Access) -> Void, _ body: () throws -> T
  ) rethrows -> T {
    try turn.withLock { _ in
      let listener = Listener(after)
      let code = withExtendedLifetime(listener) {
        trap_begin(
          Int32(pieces.count), pieces.map { $0.baseAddress }, pieces.map(\.count),
          { context, piece, offset, isWrite in
            guard let context else { return }
            Unmanaged<Listener>.fromOpaque(context).takeUnretainedValue().body(
              Access(piece: Int(piece), offset: offset, isWrite: isWrite != 0))
          }, Unmanaged.passUnretained(listener).toOpaque())
      }
      #expect(code == 0)
      defer {
        trap_end()
        _ = listener
      }
      return try body()
    }
  }
}
