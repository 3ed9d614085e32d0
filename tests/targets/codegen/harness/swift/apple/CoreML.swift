// The signatures of CoreML that EdgeFace.swift uses, written down from Apple's documentation: spelling and types only.
import CoreVideo
@_exported import Foundation

public enum MLMultiArrayDataType { case float32 }

public final class MLMultiArray {
    public let count = 0
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {}
    public subscript(_ at: Int) -> NSNumber {
        get { 0 }
        set {}
    }
}

public final class MLFeatureValue {
    public init(pixelBuffer: CVPixelBuffer) {}
    public init(multiArray: MLMultiArray) {}
    public var multiArrayValue: MLMultiArray? { nil }
}

public protocol MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    public func featureValue(for name: String) -> MLFeatureValue? { nil }
}

public final class MLModel {
    public func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider { input }
}
