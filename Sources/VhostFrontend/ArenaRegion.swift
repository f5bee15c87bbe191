// One piece of guest memory: what a test asks for, and the mapping made of it. Used by GuestArena; any
// thread.

import CLinux
import Glibc

/// A region to be: where the guest sees it, how long it is, and which part of which memfd it is made of.
public struct ArenaRegion: Equatable, Sendable {
  public var guestAddress: UInt64
  public var bytes: Int
  /// Regions of the same number share one memfd.
  public var file: Int
  /// May be odd, as libblkio's are; it must leave the guest address aligned to 16 as it is.
  public var fileOffset: UInt64

  public init(at guestAddress: UInt64, bytes: Int, file: Int = 0, fileOffset: UInt64 = 0) {
    (self.guestAddress, self.bytes) = (guestAddress, bytes)
    (self.file, self.fileOffset) = (file, fileOffset)
  }
}

/// A region mapped into this process, with a page on each side that nobody may touch.
@safe final class MappedRegion {
  let region: ArenaRegion
  // SAFETY: `base` is `region.bytes` long inside the reservation, which is unmapped once, in deinit.
  let base: UnsafeMutableRawPointer
  private let reservation: UnsafeMutableRawPointer
  private let reserved: Int

  /// Maps `region` of a memfd whose pages are `page` bytes long.
  init(_ region: ArenaRegion, descriptor: FrontendDescriptor, page: Int) throws(FrontendError) {
    let inPage = Int(region.fileOffset % UInt64(page))
    let length = (inPage + region.bytes + page - 1) / page * page
    let reserved = length + 3 * page
    // SAFETY: a new mapping wherever the kernel likes; nothing else lies there.
    let start = unsafe mmap(nil, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let start = unsafe start, unsafe start != MAP_FAILED else { throw .last("mmap") }
    let misfit = Int(bitPattern: start) % page
    // SAFETY: at least one page after `start`, with `length` and one page more behind it, all of it reserved
    // above.
    let inside = unsafe start + (misfit == 0 ? page : 2 * page - misfit)
    let mapped = unsafe mmap(
      inside, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, descriptor.raw,
      off_t(region.fileOffset) - off_t(inPage))
    guard unsafe mapped == inside else {
      let error = FrontendError.last("mmap")
      _ = unsafe munmap(start, reserved)
      throw error
    }
    self.region = region
    unsafe base = inside + inPage
    unsafe reservation = start
    self.reserved = reserved
  }

  deinit {
    // SAFETY: the reservation of init; nobody holds pointers into it longer than the arena.
    _ = unsafe munmap(reservation, reserved)
  }
}

/// Bytes that depend on their address and a seed, so that misplaced data shows.
public struct BytePattern: Equatable, Sendable {
  public let seed: UInt64
  public init(seed: UInt64) { self.seed = seed }

  @inlinable public func byte(at address: UInt64) -> UInt8 {
    UInt8(truncatingIfNeeded: ((address ^ seed &* 0xff51_afd7_ed55_8ccd) &* 0x9e37_79b9_7f4a_7c15) >> 56)
  }

  /// `count` bytes as they are from `address`.
  public func bytes(at address: UInt64 = 0, count: Int) -> [UInt8] {
    (0..<count).map { byte(at: address &+ UInt64($0)) }
  }
}
