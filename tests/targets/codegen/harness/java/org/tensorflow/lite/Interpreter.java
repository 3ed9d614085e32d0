package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.Map;

/** The signatures of LiteRT's class of this name; it answers with what it was given, and remembers what it was asked. */
public class Interpreter implements AutoCloseable {
    public static DataType type = DataType.FLOAT32;
    public static final Tensor.QuantizationParams GRID = new Tensor.QuantizationParams(1 / 32f, 3);
    public static final Map<String, byte[]> ANSWERS = new HashMap<>();
    public static byte[] seen = {};

    public static class Options {
        public Options setNumThreads(int threads) {
            return this;
        }
    }

    public Interpreter(ByteBuffer model, Options options) {}

    public Tensor getOutputTensorFromSignature(String name, String signature) {
        if (!signature.equals("serving_default")) throw new IllegalArgumentException(signature);
        int bytes = ANSWERS.get(name).length;
        return new Tensor() {
            @Override
            public DataType dataType() {
                return type;
            }

            @Override
            public int numElements() {
                return type == DataType.INT8 ? bytes : bytes / 4;
            }

            @Override
            public int numBytes() {
                return bytes;
            }

            @Override
            public QuantizationParams quantizationParams() {
                return GRID;
            }
        };
    }

    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs, String signature) {
        ByteBuffer image = (ByteBuffer) inputs.get("image");
        seen = new byte[image.remaining()];
        image.get(seen);
        for (Map.Entry<String, byte[]> answer : ANSWERS.entrySet()) {
            ((ByteBuffer) outputs.get(answer.getKey())).put(answer.getValue());
        }
    }

    @Override
    public void close() {}
}
