// The words of virtio-blk: feature bits, request types, status bytes, the request header. Constants and values.

import DeviceKit

extension FeatureSet {
  /// Most segments in a request (virtio 1.3 §5.2.3).
  static let segmentLimit = FeatureSet(bit: 2)
  static let readOnly = FeatureSet(bit: 5)
  static let blockSize = FeatureSet(bit: 6)
  static let flush = FeatureSet(bit: 9)
  static let topology = FeatureSet(bit: 10)
  static let cacheMode = FeatureSet(bit: 11)
  static let multiQueue = FeatureSet(bit: 12)
  static let discard = FeatureSet(bit: 13)
  static let writeZeroes = FeatureSet(bit: 14)
}

/// Request types (virtio 1.3 §5.2.6).
enum BlockRequestType {
  static let read: UInt32 = 0
  static let write: UInt32 = 1
  static let flush: UInt32 = 4
  /// The legacy name of the same (FLUSH_OUT).
  static let flushOut: UInt32 = 5
  static let getID: UInt32 = 8
  static let discard: UInt32 = 11
  static let writeZeroes: UInt32 = 13
  /// Legacy drivers set it on any type; it means nothing here.
  static let barrier: UInt32 = 1 << 31
}

/// The last byte of a request, written by the device (virtio 1.3 §5.2.6).
enum BlockStatus: UInt8, Sendable {
  case ok = 0
  case ioError = 1
  case unsupported = 2
}

/// {le32 type, le32 reserved, le64 sector}, copied out of guest memory once.
struct BlockHeader {
  static let byteCount = 16
  let type: UInt32
  let sector: UInt64

  init(words: (UInt64, UInt64)) {
    type = UInt32(truncatingIfNeeded: words.0) & ~BlockRequestType.barrier
    sector = words.1
  }
}

/// The unit of sectors and capacity, whatever the block size is (virtio 1.3 §5.2.4).
let sectorBytes: UInt64 = 512
