// A chain that a test holds on to: the testing macros take neither move-only nor non-escapable values. One thread.

import Glibc
import VirtQueue

/// A chain, until it is given back. Everything goes through the chain's own segments.
final class GivenChain: CustomReflectable {
  /// A failed expectation looks into what it names, and cannot look into this.
  var customMirror: Mirror { Mirror(self, children: []) }
  fileprivate var chain: Chain?
  let head: UInt16
  init(_ chain: consuming Chain) {
    head = chain.head
    self.chain = consume chain
  }

  var hasHole: Bool { use { $0.hasHole } ?? false }
  var readable: Part { Part(given: self, isWritable: false) }
  var writable: Part { Part(given: self, isWritable: true) }

  fileprivate func use<T>(_ body: (borrowing Chain) -> T) -> T? {
    guard let chain = chain.take() else { return nil }
    let value = body(chain)
    self.chain = consume chain
    return value
  }

  /// The chain itself, to be completed, held or dropped.
  func surrender() -> Chain? { chain.take() }

  /// One direction of the chain.
  struct Part {
    fileprivate let given: GivenChain
    fileprivate let isWritable: Bool

    private func ask<T>(_ body: (borrowing Segments) -> T) -> T? {
      let isWritable = isWritable
      return given.use { chain in isWritable ? body(chain.writable) : body(chain.readable) }
    }

    var count: Int { ask { $0.count } ?? -1 }
    var byteCount: Int { ask { Int($0.byteCount) } ?? -1 }
    /// The runs of host memory; a nil base for a hole.
    var runs: [UnsafeMutableRawBufferPointer] {
      ask { segments in (0..<segments.count).map { segments[$0] } } ?? []
    }
    /// The same as the kernel takes them.
    var vectors: [iovec] { ask { segments in (0..<segments.count).map { segments.vectors[$0] } } ?? [] }
    /// All bytes up to the first hole.
    var contents: [UInt8] { copyOut(min(byteCount, 1 << 20)) }

    /// At most `count` bytes from `offset` on.
    func copyOut(_ count: Int, from offset: Int = 0) -> [UInt8] {
      var bytes = [UInt8](repeating: 0xee, count: count)
      let copied = bytes.withUnsafeMutableBytes { buffer in ask { $0.copyOut(to: buffer, from: offset) } }
      // Nothing beyond what it says may have changed.
      guard let copied, bytes[copied...].allSatisfy({ $0 == 0xee }) else { return [] }
      return Array(bytes.prefix(copied))
    }

    func copyIn(_ bytes: [UInt8], at offset: Int = 0) -> Int {
      bytes.withUnsafeBytes { buffer in ask { $0.copyIn(from: buffer, at: offset) } } ?? -1
    }

    func load<T: BitwiseCopyable & ExpressibleByIntegerLiteral>(_ type: T.Type, at offset: Int = 0) -> T? {
      ask { $0.load(type, at: offset) } ?? nil
    }

    func store(_ byte: UInt8, at offset: Int) -> Bool { ask { $0.store(byte, at: offset) } ?? false }

    func fill(_ body: (inout MutableRawSpan) -> Bool) -> Int { ask { Int($0.fill(body)) } ?? -1 }
  }
}

struct NoChain: Error {}

extension TestRing {
  /// The next chain, which must be there.
  func chain() throws -> GivenChain {
    guard let chain = next() else { throw NoChain() }
    return GivenChain(chain)
  }

  func complete(_ given: GivenChain, written: Int) {
    if let chain = given.surrender() { complete(chain, written: written) }
  }

  func givesNothing() -> Bool {
    guard let chain = next() else { return true }
    complete(chain, written: 0)
    return false
  }
}
